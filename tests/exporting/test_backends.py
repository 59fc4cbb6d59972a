from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from patchranking import UserError
from patchranking.errors import MissingExtraError
from patchranking.exporting import backends
from patchranking.exporting.backends import BACKENDS, Onnx, OpenVino
from patchranking.exporting.check import BATCHES, agreement
from patchranking.exporting.modules import ImageSide, TextSide, traced
from patchranking.predictor.networks import Predictor
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers.identity import BaseModel

PARITY = [
    ("open_clip", True),
    ("transformers-siglip", True),
    ("timm-dinov2-registers", False),
    ("timm-average-pool", True),
]
"""Class token, attention pooling, registers, average; whether patches merge, as ``fit`` makes it by default."""


def pruner_of(tower, merges):
    """With corrections and visual tokens; merging at every stage, or one that scores and one that does not."""
    schedule = Schedule.default(tower.depth, 0.5)
    first, *later = schedule.stages
    assert later
    predictors = Predictor.for_stages(tower, [first, *later] if merges else [first], merges=merges)
    for predictor in predictors.values():
        nn.init.normal_(predictor.correction.weight)
    pruner = Pruner(predictors, BaseModel.of(tower, "tiny"), schedule).eval()
    return pruner.tuned_by(Prompts("visual", 8, tower.width, 2, depth=2))


def as_the_library(case, pruner):
    """What the library returns once the pruner is attached, and the patches kept."""
    side = ImageSide(case.tower, pruner)

    def encode(pixels):
        with pruner.attached(case.model):
            features = case.encode(pixels)
        return features, side(pixels)[1]

    return encode


@pytest.mark.parametrize(("case", "merges"), PARITY, indirect=["case"])
def test_every_backend_has_the_features_and_the_patches_of_the_library(case, merges, tmp_path):
    del case.tower.blocks[3:]
    pruner = pruner_of(case.tower, merges)
    pixels = torch.randn(sum(BATCHES), *case.pixels.shape[1:])
    reference = as_the_library(case, pruner)
    with torch.inference_mode():
        kept = reference(pixels)[1]
        assert len({tuple(row) for row in kept.tolist()}) > 1
        assert not torch.allclose(reference(pixels)[0], case.encode(pixels), rtol=0.01)
    program = traced(ImageSide(case.tower, pruner), pixels[:2])
    files = {name: tmp_path / f"image{BACKENDS[name].suffix}" for name in ("onnx", "openvino")}
    Onnx().write(program, ImageSide.names, files["onnx"])
    OpenVino().convert(files["onnx"], files["openvino"])
    for name, path in files.items():
        found = agreement(BACKENDS[name].load(path), reference, pixels)
        assert found.cosine > 0.99999
        assert found.same_patches == 1


class Sorted(nn.Module):
    names = ("image", "features")

    def forward(self, image):
        return (image.argsort(dim=-1, descending=True, stable=True).float(),)


def test_equal_scores_keep_the_lower_index_in_onnx(tmp_path):
    scores = torch.tensor([[1.0, 3.0, 1.0, 3.0, 2.0, 1.0], [0.0] * 6])
    Onnx().write(traced(Sorted(), scores), Sorted.names, tmp_path / "sort.onnx")
    (found,) = Onnx().load(tmp_path / "sort.onnx")(scores.numpy())
    assert found.tolist() == [[1, 3, 4, 0, 2, 5], [0, 1, 2, 3, 4, 5]]


def test_weights_in_a_file_of_their_own_move_with_the_folder(loaded, tmp_path):
    side, ids = TextSide(loaded.text), torch.randint(1, 60, (3, 12), dtype=torch.int32)
    before = tmp_path / "before"
    before.mkdir()
    Onnx(side_file=True).write(traced(side, ids), side.names, before / "text.onnx")
    assert (before / "text.onnx.data").stat().st_size > 4 * sum(
        w.numel() for w in loaded.model.transformer.parameters()
    )
    shutil.move(before, tmp_path / "after")
    (found,) = Onnx().load(tmp_path / "after" / "text.onnx")(ids.numpy())
    np.testing.assert_allclose(found, loaded.text.encode(ids), atol=1e-5)


def test_an_archive_with_pickled_objects_is_not_opened(tmp_path):
    backend, path = BACKENDS["torch"], tmp_path / "sort.pt2"
    backend.write(traced(Sorted(), torch.randn(2, 3)), Sorted.names, path)
    assert backend.load(path)(np.float32([[1, 2, 0]]))[0].tolist() == [[1, 0, 2]]
    for name, content in (
        ("sort/data/sample_inputs/more.pt", b"\x80"),
        ("sort/data/weights/more_weights_config.json", json.dumps({"config": {"w": {"use_pickle": True}}})),
    ):
        changed = tmp_path / "changed.pt2"
        shutil.copy(path, changed)
        with zipfile.ZipFile(changed, "a") as archive:
            archive.writestr(name, content)
        with pytest.raises(UserError, match="pickled objects"):
            backend.load(changed)


@pytest.mark.parametrize(
    ("name", "lacks"), [("onnx", "onnxscript"), ("onnx", "onnxruntime"), ("openvino", "openvino"), ("openvino", "onnx")]
)
def test_what_is_missing_is_said_in_one_sentence(name, lacks, monkeypatch):
    def import_extra(module, need, extra):
        if module == lacks:
            raise MissingExtraError(need, extra)

    monkeypatch.setattr(backends, "import_extra", import_extra)
    with pytest.raises(MissingExtraError, match=rf"needs {lacks}|way of {lacks}.*pip install 'patchranking"):
        BACKENDS[name].check("fp32")
