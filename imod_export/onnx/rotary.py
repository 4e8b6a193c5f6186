"""Rotary embeddings as one operator of onnxruntime's, for the six that transformers' arithmetic becomes.

`x·cos + [-x₂, x₁]·sin`: `x (B, heads, L, d)` has the halves `x₁` and `x₂`; `cos` and `sin` are `(B, 1, L, d)`. It is a
rotation because both halves of `cos`, and of `sin`, are the same.
"""

from collections.abc import Callable, Iterator
from itertools import permutations

import onnx_ir as ir

DOMAIN, OPERATOR = "com.microsoft", "RotaryEmbedding"
"""It looks angles up by position in a table; here a position is a token's place in the batch, a row each."""


def fuse_rotations(model: ir.Model) -> int:
    """Put the one operator in the place of every rotation; how many there were."""
    made: dict[tuple[Callable, ir.Value], ir.Value] = {}
    count = 0
    for node in list(model.graph):
        if (found := _rotation(node)) is None:
            continue
        x, cos, sin = found
        for make, wave in ((_places, cos), (_table, cos), (_table, sin)):
            if (make, wave) not in made:
                made[make, wave] = make(model, wave, node)
        inputs = [x, made[_places, cos], made[_table, cos], made[_table, sin]]
        fused = ir.node(OPERATOR, inputs, domain=DOMAIN, name=node.name)
        fused.outputs[0].type, fused.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        model.graph.insert_before(node, fused)
        ir.convenience.replace_all_uses_with(node.outputs[0], fused.outputs[0], replace_graph_outputs=True)
        count += 1
    if count:
        model.opset_imports[DOMAIN] = 1
    return count


def _table(model: ir.Model, wave: ir.Value, before: ir.Node) -> ir.Value:
    """`(B·L, d/2)`: the first half of cosines or sines, a row for each token."""
    assert wave.shape is not None
    width = wave.shape[3]
    assert isinstance(width, int)
    half = width // 2
    cut = ir.node("Slice", [wave, *(_constant(model, value) for value in ([0], [half], [3], [1]))])
    rows = ir.node("Reshape", [cut.outputs[0], _constant(model, [-1, half])])
    model.graph.insert_before(before, [cut, rows])
    (table,) = rows.outputs
    table.type = wave.type
    return table


def _places(model: ir.Model, wave: ir.Value, before: ir.Node) -> ir.Value:
    """`(B, L)`: which row of the table is a token's."""
    shape = ir.node("Shape", [wave])
    size = ir.node("Gather", [shape.outputs[0], _constant(model, [0, 2])])
    count = ir.node("ReduceProd", [size.outputs[0]], {"keepdims": 0})
    every = ir.node("Range", [_constant(model, 0), count.outputs[0], _constant(model, 1)])
    places = ir.node("Reshape", [every.outputs[0], size.outputs[0]])
    model.graph.insert_before(before, [shape, size, count, every, places])
    return places.outputs[0]


def _constant(model: ir.Model, value: int | list[int]) -> ir.Value:
    """An integer constant, one for all who ask for the same."""
    name = f"rotary_{'_'.join(map(str, value))}" if isinstance(value, list) else f"rotary_scalar_{value}"
    if name not in model.graph.initializers:
        tensor = ir.tensor(value, dtype=ir.DataType.INT64)
        model.graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return model.graph.initializers[name]


def _rotation(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """`x`, `cos` and `sin` if `node` is the sum of a rotation."""
    if node.op_type != "Add":
        return None
    for plain, turned in permutations(node.inputs):
        for x, cos in _factors(plain):
            for half_turn, sin in _factors(turned):
                if _is_half_turn(half_turn, x):
                    return x, cos, sin
    return None


def _factors(value: ir.Value | None) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Both orders of what a product is of; nothing if `value` is none."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Mul":
        one, other = node.inputs
        assert one is not None
        assert other is not None
        yield from ((one, other), (other, one))


def _is_half_turn(value: ir.Value, x: ir.Value) -> bool:
    """Whether `value` is `[-x₂, x₁]`."""
    joined = value.producer()
    if joined is None or joined.op_type != "Concat" or len(joined.inputs) != 2:
        return False
    second, first = joined.inputs
    negated = second.producer() if second is not None else None
    width = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
    if negated is None or negated.op_type != "Neg" or not isinstance(width, int):
        return False
    axis, half = joined.attributes["axis"].as_int() % 4, width // 2
    return axis == 3 and _cut(first, x, width) == (0, half) and _cut(negated.inputs[0], x, width) == (half, width)


def _cut(value: ir.Value | None, x: ir.Value, width: int) -> tuple[int, int] | None:
    """From where to where `value` is cut out of the last axis of `x`, which is `width` wide."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Slice" or node.inputs[0] is not x:
        return None
    constants = [given.const_value.numpy().tolist() for given in node.inputs[1:] if given and given.const_value]
    if len(constants) != 4 or constants[2] not in ([3], [-1]) or constants[3] != [1]:
        return None
    return constants[0][0], min(constants[1][0], width)
