"""Rotations become one operator, which turns as the arithmetic that it stands for; nothing else does."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from imod_export.onnx.layout import DECODER, SUFFIXES, file_name
from imod_export.onnx.rotary import OPERATOR, fuse_rotations

HALF = 4
SHAPE = (2, 3, 5, 2 * HALF)
"""B, heads, L, d."""


def graph(first=(0, HALF), second=(HALF, 2**31 - 1), axis=-1, negated=True, swapped=False):
    """`x·cos + [-x₂, x₁]·sin`, or something like it."""
    numbers = {"a": first[0], "b": first[1], "c": second[0], "d": second[1], "axis": 3, "step": 1}
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in numbers.items()]
    turned = ["first", "minus"] if swapped else ["minus", "first"]
    nodes = [
        helper.make_node("Slice", ["x", "a", "b", "axis", "step"], ["first"]),
        helper.make_node("Slice", ["x", "c", "d", "axis", "step"], ["second"]),
        helper.make_node("Neg" if negated else "Identity", ["second"], ["minus"]),
        helper.make_node("Concat", turned, ["turned"], axis=axis),
        helper.make_node("Mul", ["sin", "turned"], ["sine"]),
        helper.make_node("Mul", ["x", "cos"], ["cosine"]),
        helper.make_node("Add", ["sine", "cosine"], ["y"]),
    ]
    one_head = ["B", 1, "L", SHAPE[3]]
    inputs = {"x": ["B", SHAPE[1], "L", SHAPE[3]], "cos": one_head, "sin": one_head}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, inputs["x"])
    made = helper.make_graph(nodes, "rotation", infos, [result], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, feeds):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


@pytest.mark.parametrize("axis", [3, -1])
def test_the_operator_turns_as_the_arithmetic(axis):
    draw = np.random.default_rng(0)
    angles = draw.uniform(-9, 9, (SHAPE[0], 1, SHAPE[2], HALF)).astype(np.float32)
    both = np.concatenate([angles, angles], -1)
    feeds = {"x": draw.standard_normal(SHAPE, np.float32), "cos": np.cos(both), "sin": np.sin(both)}
    before = graph(axis=axis)
    model = ir.serde.deserialize_model(before)
    assert fuse_rotations(model) == 1
    after = ir.serde.serialize_model(model)
    onnx.checker.check_model(after)
    assert np.abs(run(after, feeds) - run(before, feeds)).max() < 1e-6


@pytest.mark.parametrize(
    "other",
    [{"first": (0, 3)}, {"second": (3, 9)}, {"second": (HALF, 7)}, {"negated": False}, {"swapped": True}],
    ids=str,
)
def test_what_is_no_rotation_stays(other):
    model = ir.serde.deserialize_model(graph(**other))
    assert fuse_rotations(model) == 0
    assert ir.serde.serialize_model(model).graph.node[0].op_type == "Slice"


@pytest.mark.parametrize("variant", SUFFIXES)
def test_every_layer_of_a_decoder_turns_queries_and_keys(onnx_folder, variant):
    nodes = onnx.load(onnx_folder / file_name(DECODER, variant)).graph.node
    layers = sum(node.op_type == "Softmax" for node in nodes)
    assert sum(node.op_type == OPERATOR for node in nodes) == 2 * layers > 0
    assert sum(node.op_type == "Neg" for node in nodes) == 1, "that of the last logits"
