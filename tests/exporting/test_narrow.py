from __future__ import annotations

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from patchranking.exporting.narrow import narrow_in_onnx, narrow_in_openvino

MATRICES = {"encoder": (96, 128), "reduce": (96, 32), "widen": (32, 96)}


@pytest.fixture(scope="module")
def graph():
    """An encoder's multiplication, those into and out of a predictor, and the cosines of patches with one another."""
    nodes = [
        helper.make_node("MatMul", ["tokens", "encoder_weight"], ["encoder"], "encoder"),
        helper.make_node("MatMul", ["tokens", "reduce_weight"], ["channels"], "reduce"),
        helper.make_node("MatMul", ["channels", "widen_weight"], ["widen"], "widen"),
        helper.make_node("Transpose", ["channels"], ["turned"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["channels", "turned"], ["cosines"], "cosines"),
        helper.make_node("Transpose", ["tokens"], ["keys"], "turn_keys", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "keys"], ["attention"], "attention"),
    ]
    weights = [numpy_helper.from_array(np.ones(size, np.float32), f"{name}_weight") for name, size in MATRICES.items()]
    names = ("encoder", "widen", "cosines", "attention")
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", 40, 96])
    made = helper.make_graph(nodes, "graph", [tokens], outputs, weights)
    return onnx.shape_inference.infer_shapes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]))


@pytest.mark.parametrize(("widest", "expected"), [(33, {"reduce", "widen", "cosines"}), (16, set())])
def test_multiplications_of_predictors_are_told_by_their_width(graph, tmp_path, widest, expected):
    onnx.save(graph, tmp_path / "model.onnx")
    assert set(narrow_in_onnx(graph, widest)) == expected
    assert set(narrow_in_openvino(openvino.convert_model(tmp_path / "model.onnx"), widest)) == expected


def test_without_a_pruner_nothing_is_narrow(graph):
    assert narrow_in_onnx(graph, 0) == []
