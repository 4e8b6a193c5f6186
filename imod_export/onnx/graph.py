"""One module to one ONNX file: traced by torch.export, translated, tidied, written, checked.

`torch.onnx.export(dynamo=True)` is the exporter that torch maintains; the older one records a single run and loses
what depends on lengths. Weights stay torch tensors until they are written, so a model needs its own memory once.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from blake3 import blake3
from onnx_ir.passes.common import RemoveUnusedNodesPass

from imod_export.onnx.components import Component
from imod_export.onnx.layout import DECODER, FULL, KEEP, data_name, file_name
from imod_export.onnx.rotary import fuse_rotations

OPSET = 20
"""torch's exporter writes it without a conversion, and every runtime of the last two years reads it."""
SMALL_BYTES = 1_800_000_000
"""Weights up to this stay in the graph's own file; protobuf's limit is 2 GiB."""
DUPLICATE_BYTES = 1024
"""Equal constants below this do no harm."""


def trace(component: Component) -> ir.Model:
    """The graph of a component, its weights still torch's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            component.module.eval(),
            component.args,
            dynamo=True,
            dynamic_shapes=component.axes,
            input_names=component.inputs,
            output_names=component.outputs,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model
    if component.name == DECODER:
        _keep_last(model)
        fuse_rotations(model)
    _divide(model)
    _tidy(model)
    return model


def write(model: ir.Model, folder: Path, name: str, variant: str = FULL, small: int = SMALL_BYTES) -> Path:
    """Write a graph into `folder`, its weights beside it where they exceed `small` bytes, and check it.

    Raises:
        onnx.checker.ValidationError: the graph breaks the standard; a fault of ours.
    """
    path = folder / file_name(name, variant)
    beside = weight_bytes(model) > small
    ir.save(model, path, external_data=data_name(name, variant) if beside else None)
    onnx.checker.check_model(path, full_check=not beside)
    return path


def weight_bytes(model: ir.Model) -> int:
    """Of all initializers."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def duplicates(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Pairs of weights that hold the same bytes, the one that came first in front."""
    seen: dict[tuple, ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= DUPLICATE_BYTES:
            key = (tensor.dtype, tuple(tensor.shape), blake3(tensor.tobytes()).digest())
            first = seen.setdefault(key, value)
            if first is not value:
                yield first, value


def _keep_last(model: ir.Model) -> None:
    """Let the caller choose how many last positions go through the head: at a large vocabulary, most of a prefill."""
    head = model.graph.outputs[0].producer()
    assert head is not None
    hidden = head.inputs[0]
    assert hidden is not None
    wish = ir.Value(name=KEEP, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    model.graph.inputs.append(wish)
    ends = {"first": [-1], "end": [torch.iinfo(torch.int64).max], "axis": [1]}
    for name, value in ends.items():
        constant = ir.Value(name=f"{KEEP}_{name}", const_value=ir.tensor(value, dtype=ir.DataType.INT64))
        model.graph.register_initializer(constant)
    values = model.graph.initializers
    start = ir.node("Neg", [wish])
    listed = ir.node("Reshape", [start.outputs[0], values[f"{KEEP}_first"]])
    last = ir.node("Slice", [hidden, listed.outputs[0], values[f"{KEEP}_end"], values[f"{KEEP}_axis"]])
    last.outputs[0].type = hidden.type
    model.graph.insert_before(head, [start, listed, last])
    head.replace_input_with(0, last.outputs[0])
    logits = model.graph.outputs[0]
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], "num_logits", logits.shape[2]])


def _divide(model: ir.Model) -> None:
    """`x · (1 / y)` to `x / y`, the form of a norm that onnxruntime knows and runs as one operator."""
    for node in list(model.graph):
        for place in (0, 1) if node.op_type == "Mul" else ():
            factor = node.inputs[place]
            inverse = factor.producer() if factor is not None else None
            if inverse is not None and inverse.op_type == "Reciprocal":
                quotient = ir.node("Div", [node.inputs[1 - place], inverse.inputs[0]], name=node.name)
                quotient.outputs[0].type, quotient.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
                model.graph.insert_before(node, quotient)
                ir.convenience.replace_all_uses_with(node.outputs[0], quotient.outputs[0], replace_graph_outputs=True)
                model.graph.remove(node, safe=True)
                break


def _tidy(model: ir.Model) -> None:
    """Share equal weights, and drop the notes on where each node came from: they name files of this machine."""
    for first, again in duplicates(model):
        ir.convenience.replace_all_uses_with(again, first)
    RemoveUnusedNodesPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
