"""Smaller forms of a graph by onnxruntime's own quantisers, under transformers.js' names.

fp16   weights, cache and products in float16; norms and rotary angles, whose squares and positions float16 cannot
       hold, stay float32, as do embeddings, features and logits at the graphs' borders
int8   weights of products in 8 bits, one scale for 32 of a column; the embedding table in float16
q4     weights of products in 4 bits with a scale and a zero point for 32; the embedding table in float16

Blocks of 32 decide the quality: on SmolLM2-135M onnxruntime's dynamic int8, one scale a column and one for all
activations, was off by 1.1 of the logits' spread, blocks by 0.1.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto

from imod_export.onnx.graph import SMALL_BYTES, write
from imod_export.onnx.layout import EMBED, FULL, file_name

BITS = {"int8": 8, "q4": 4}
BLOCK = 32
"""Weights of a column that share a scale."""
ACCURACY = 4
"""onnxruntime's level at which activations are rounded to 8 bits in the same blocks and products are integer."""
PRECISE = {"Cos": 99, "Sin": 99, "Sqrt": 3}
"""Operators whose inputs float16 ruins, positions beyond 2048 and squares beyond 65504, and how many nodes back these
inputs begin: rotary angles at the graph's own input, a norm's root at mean, sum and square."""


def write_variant(folder: Path, component: str, variant: str, small: int = SMALL_BYTES) -> Path:
    """Write the form `variant` of the float32 graph `component` of `folder` beside it; checked as the others."""
    model = onnx.load(folder / file_name(component))
    with _quiet():
        smaller = to_half(model) if variant == "fp16" or component == EMBED else to_blocks(model, BITS[variant])
    graph = ir.serde.deserialize_model(smaller)
    graph.graph.sort()
    return write(graph, folder, component, variant, small)


def to_half(model: ModelProto) -> ModelProto:
    """The float16 form of a graph."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = model.graph
    borders = [v.name for v in (*graph.input, *graph.output) if not v.name.startswith(("past", "present"))]
    kept = {node.name for node in precise_nodes(graph)}
    used_by_others = {name for node in graph.node if node.name not in kept for name in node.input}
    inner = {name for node in graph.node if node.name in kept for name in node.output} - used_by_others
    typed = [info for info in graph.value_info if info.name not in inner]  # what has no type is not cast in between
    _replace(graph.value_info, typed)
    half = convert_float_to_float16(model, keep_io_types=borders, disable_shape_infer=True, node_block_list=list(kept))
    first: dict[str, NodeProto] = {}  # a value that is a node's input twice was cast twice
    _replace(half.graph.node, [node for node in half.graph.node if first.setdefault(node.output[0], node) is node])
    _replace(half.graph.value_info, [])  # some still say float32; readers infer what they need
    return half


def _replace(repeated: Any, items: list[Any]) -> None:
    del repeated[:]
    repeated.extend(items)


def to_blocks(model: ModelProto, bits: int) -> ModelProto:
    """The form whose products have weights of `bits`."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    settings = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=bits == 8, accuracy_level=ACCURACY, op_types_to_quantize=("MatMul",), bits=bits
    )
    quantizer = MatMulNBitsQuantizer(model, algo_config=settings)
    quantizer.process()
    return quantizer.model.model


def precise_nodes(graph: GraphProto) -> list[NodeProto]:
    """What must stay float32: all that leads to rotary angles, and norms from the square to the quotient."""
    made = {name: node for node in graph.node for name in node.output}
    kept: dict[str, NodeProto] = {}
    for node in graph.node:
        if node.op_type in PRECISE:
            _keep(node, made, kept, PRECISE[node.op_type])
    roots = {node.output[0] for node in kept.values() if node.op_type == "Sqrt"}
    quotients = [node for node in graph.node if node.op_type == "Div" and node.input[1] in roots]
    return [*kept.values(), *quotients]


def _keep(node: NodeProto, made: dict[str, NodeProto], kept: dict[str, NodeProto], steps: int) -> None:
    """Collect `node` and what it is computed from, `steps` nodes back."""
    if node.name not in kept:
        kept[node.name] = node
        for name in node.input:
            if name in made and steps:
                _keep(made[name], made, kept, steps - 1)


@dataclass(frozen=True)
class WeightError:
    """How well one weight of a smaller form stands for the one in float32."""

    name: str
    bits: int
    relative: float
    """RMS of the difference over RMS of the weight."""


def weight_errors(folder: Path, component: str, variant: str) -> list[WeightError]:
    """Every product's weight of a blockwise form, multiplied out again, against float32."""
    full, small = (ir.load(folder / file_name(component, v)) for v in (FULL, variant))
    originals: dict[str | None, Any] = {node.name: node for node in full.graph}
    found = []
    for node in small.graph:
        if node.op_type == "MatMulNBits":
            bits = node.attributes["bits"].as_int()
            name = str(node.name).removesuffix(f"_Q{bits}")
            original = originals[name].inputs[1].const_value.numpy()
            error = dequantized(node) - original
            found.append(WeightError(name, bits, float(np.sqrt(np.mean(error**2) / np.mean(original**2)))))
    return found


def dequantized(node: Any) -> NDArray[np.float32]:
    """The weight `(K, N)` of a MatMulNBits node: `(code - zero point) * scale`, low bits of a byte first."""
    inner, outer, bits = (node.attributes[name].as_int() for name in ("K", "N", "bits"))
    codes = _unpacked(node.inputs[1].const_value.numpy(), bits).reshape(outer, -1, BLOCK).astype(np.float32)
    scales = node.inputs[2].const_value.numpy().reshape(outer, -1, 1)
    zeros: Any = 1 << (bits - 1)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        packed = node.inputs[3].const_value.numpy().reshape(outer, -1)
        zeros = _unpacked(packed, bits)[:, : scales.shape[1], None].astype(np.float32)
    return ((codes - zeros) * scales).reshape(outer, -1)[:, :inner].T


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers report every node, and set up logging for everybody."""
    root = logging.getLogger()
    before, handlers = logging.root.manager.disable, list(root.handlers)
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.handlers[:] = handlers
