"""The layers of a graph that int8 may leave in float32: those of predictors, told by their width, and the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Layers", "layers_in_onnx", "layers_in_openvino"]

_IN_ONNX = ("MatMul", "Gemm", "Conv")
_IN_OPENVINO = ("MatMul", "Convolution", "ScaledDotProductAttention")


@dataclass(frozen=True)
class Layers:
    """Names of multiplications.

    Attributes:
        predictors: Those over, or into, few channels.
        kinds: Those of the encoder, by the operation and the size of its weights: one place in every block.
    """

    predictors: list[str]
    kinds: list[list[str]]


@dataclass(frozen=True)
class _Layer:
    """A multiplication: sizes of what is multiplied, None where unknown, and those of its weights, empty without."""

    name: str
    operation: str
    left: Sequence[int | None]
    weights: Sequence[int]

    def narrow(self, widest: int) -> bool:
        """Whether what is summed over, or either side of a matrix of weights, is known to be narrow."""
        matrix = len(self.weights) < 3
        return matrix and any(size is not None and size <= widest for size in [*self.left[-1:], *self.weights])


def layers_in_openvino(model: Any, widest: int) -> Layers:
    """Those of ``openvino.Model``.

    Args:
        model: The graph.
        widest: Channels of the widest predictor, 0 without any.
    """
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() in _IN_OPENVINO:
            left, right = (op.input(place) for place in (0, 1))
            weighted = right.get_source_output().get_node().get_type_name() == "Constant"
            sizes = [size.get_length() if size.is_static else None for size in left.get_partial_shape()]
            weights = [*right.get_partial_shape().to_shape()] if weighted else []
            found.append(_Layer(op.get_friendly_name(), op.get_type_name(), sizes, weights))
    return _sorted(found, widest)


def layers_in_onnx(model: Any, widest: int) -> Layers:
    """The same in ``onnx.ModelProto``."""
    graph = model.graph
    weights = {one.name: list(one.dims) for one in graph.initializer}
    shapes = {
        value.name: [size.dim_value or None for size in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input]
    }
    return _sorted(
        (
            _Layer(node.name, node.op_type, shapes.get(node.input[0], []), weights.get(node.input[1], []))
            for node in graph.node
            if node.op_type in _IN_ONNX
        ),
        widest,
    )


def _sorted(layers: Iterable[_Layer], widest: int) -> Layers:
    predictors, kinds = list[str](), defaultdict[tuple[str, tuple[int, ...]], list[str]](list)
    for layer in layers:
        if layer.narrow(widest):
            predictors.append(layer.name)
        else:
            kinds[layer.operation, tuple(layer.weights)].append(layer.name)
    return Layers(predictors, [*kinds.values()])
