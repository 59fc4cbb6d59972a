"""The multiplications of predictors in a graph, told from those of the encoder by how narrow they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["narrow_in_onnx", "narrow_in_openvino"]


def narrow_in_openvino(model: Any, widest: int) -> list[str]:
    """Names of multiplications over, or into, at most so many channels.

    Args:
        model: ``openvino.Model``.
        widest: Channels.
    """
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() == "MatMul":
            left, right = (op.input(place) for place in (0, 1))
            weight = right.get_source_output().get_node().get_type_name() == "Constant"
            sizes = [size.get_length() if size.is_static else None for size in left.get_partial_shape()]
            matrix = [*right.get_partial_shape().to_shape()] if weight else []
            if _narrow(sizes, matrix, widest):
                found.append(op.get_friendly_name())
    return found


def narrow_in_onnx(model: Any, widest: int) -> list[str]:
    """The same in ``onnx.ModelProto``."""
    graph = model.graph
    matrices = {one.name: list(one.dims) for one in graph.initializer}
    shapes = {
        value.name: [size.dim_value or None for size in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input]
    }
    return [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        and _narrow(shapes.get(node.input[0], []), matrices.get(node.input[1], []), widest)
    ]


def _narrow(left: Sequence[int | None], matrix: Sequence[int], widest: int) -> bool:
    """Whether what is summed over, or either side of a matrix of weights, is known to be narrow."""
    return any(size is not None and size <= widest for size in [*left[-1:], *matrix])
