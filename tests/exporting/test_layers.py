from __future__ import annotations

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from patchranking import ExportSettings, export
from patchranking.exporting.layers import layers_in_onnx, layers_in_openvino

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
    others = {*MATRICES, "cosines", "attention"} - expected
    for found in (
        layers_in_onnx(graph, widest),
        layers_in_openvino(openvino.convert_model(tmp_path / "model.onnx"), widest),
    ):
        assert set(found.predictors) == expected
        assert {name for kind in found.kinds for name in kind} == others
        assert len(found.predictors) + sum(len(kind) for kind in found.kinds) == len(expected | others)


def test_without_a_pruner_nothing_is_of_a_predictor(graph):
    assert layers_in_onnx(graph, 0).predictors == []


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_layers_at_one_place_of_every_block_are_of_one_kind(images, tmp_path, format):
    export(images, tmp_path / "out", None, ExportSettings(format))
    if format == "onnx":
        found = layers_in_onnx(onnx.load(tmp_path / "out" / "image.onnx"), 0)
    else:
        found = layers_in_openvino(openvino.Core().read_model(tmp_path / "out" / "image.xml"), 0)
    blocks = len(images.tower.blocks)
    attention = blocks if format == "openvino" else 2 * blocks  # there it is one operation
    assert sorted(len(kind) for kind in found.kinds) == sorted([1, 1, blocks, blocks, blocks, blocks, attention])
