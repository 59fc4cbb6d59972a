from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking import Encoder, ExportSettings, Pruner, UserError, export
from patchranking.exporting import export as exporting
from patchranking.exporting.check import Agreement, pictures
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.schedule import Schedule
from patchranking.towers.preprocessing import Preprocessing

ALONE = """import sys
for name in ("torch", "patchranking", "torchvision", "transformers", "open_clip", "onnx"):
    sys.modules[name] = None
"""


def pruner_of(loaded, keep=0.5):
    torch.manual_seed(0)
    return Pruner.unfitted(loaded.tower, "tiny", Schedule({1: 0.5})).at(keep)


@pytest.fixture
def small(tiny):
    """A CLIP of two blocks, whose preprocessing is said by numbers."""
    del tiny.tower.blocks[2:]
    return replace(tiny, preprocessing=Preprocessing((32, 32), tiny.mean, tiny.std, resize_mode="squash"))


@pytest.fixture
def onto_pictures(small):
    """What the library returns for the pictures of a check."""
    pixels = torch.stack([small.preprocess(picture) for picture in pictures(0)])

    def encode(pruner):
        with torch.inference_mode(), pruner.attached(small.model):
            return small.model.encode_image(pixels).numpy()

    return encode


def test_a_folder_runs_without_this_package_and_by_the_encoder(small, onto_pictures, tmp_path):
    pruner, out = pruner_of(small), tmp_path / "out"
    prompts = Prompts("text", 16, 32, 2, class_names=["cat", "dog"], features=24)
    prompts.class_features.copy_(torch.nn.functional.normalize(torch.randn(2, 24), dim=-1))
    pruner = pruner.tuned_by(prompts)
    about = export(small, out, pruner)
    assert (about.keep, about.pruner, about.feature_size, about.tuned) == (0.5, pruner.fingerprint, 24, "text")
    assert about.macs_share == pytest.approx(0.8, abs=0.15)
    assert about.check["image_cosine"] > 0.9999
    assert sorted(about.files) == sorted(
        ["README.md", "class_features.npy", "image.onnx", "preprocess_cfg.json", "text.onnx", "tokenizer.json"]
    )
    expected = onto_pictures(pruner)
    encoder = Encoder.from_pretrained(out)
    shown = list(pictures(0))
    shown[3].save(tmp_path / "three.png")
    given = [shown[0], np.array(shown[1]), shown[2], tmp_path / "three.png", str(tmp_path / "three.png")]
    found = encoder.encode_image(given, batch_size=2)
    np.testing.assert_allclose(found, expected[[0, 1, 2, 3, 3]], atol=1e-4)
    texts = ["a photo of a cat.", "Two dogs' bowls"]
    np.testing.assert_allclose(encoder.encode_text(texts), small.text(texts), atol=1e-5)
    np.testing.assert_allclose(encoder.class_features, prompts.class_features)
    (program,) = re.findall(r"```python\n(.+?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(program.splitlines()) < 18
    (out / "run.py").write_text(ALONE + program)
    command = [sys.executable, "run.py", str(tmp_path / "three.png")]
    printed = subprocess.run(command, cwd=out, capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(json.loads(printed), expected[3], atol=1e-4)


@pytest.mark.parametrize("format", ["openvino", "torch"])
def test_other_formats(small, onto_pictures, tmp_path, format):
    pruner = pruner_of(small, 0.25)
    about = export(replace(small, text=None), tmp_path / "out", pruner, ExportSettings(format))
    assert about.context_length is None
    encoder = Encoder.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(encoder.encode_image(list(pictures(0))), onto_pictures(pruner), atol=1e-4)
    assert encoder.run(np.zeros((2, 3, 32, 32), np.float32))[1].shape == (2, 4)
    with pytest.raises(UserError, match="has no text encoder"):
        encoder.encode_text(["a cat"])
    (program,) = re.findall(r"```python\n(.+?)```", (tmp_path / "out/README.md").read_text(), re.DOTALL)
    next(pictures(0)).save(tmp_path / "one.png")
    command = [sys.executable, "-c", program, str(tmp_path / "one.png")]
    printed = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(json.loads(printed), onto_pictures(pruner)[0], atol=1e-4)


def test_what_immich_reads(small, tmp_path):
    export(small, tmp_path, settings=ExportSettings(layout="immich"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["text_cfg"]["context_length"] == 24
    told = json.loads((tmp_path / "visual/preprocess_cfg.json").read_text())
    assert (told["size"], told["interpolation"], told["resize_mode"]) == ([32, 32], "bicubic", "squash")
    assert json.loads((tmp_path / "textual/tokenizer_config.json").read_text())["pad_token"]
    encoder = Encoder.from_pretrained(tmp_path)
    (features,) = encoder.run(np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(["a cat"]), small.text(["a cat"]), atol=1e-5)


@pytest.mark.parametrize(("found", "figure"), [(Agreement(0.99, 1.0), "0.990000"), (Agreement(1.0, 0.75), "75%")])
def test_a_file_that_does_not_agree_is_refused_and_the_last_export_stays(small, tmp_path, monkeypatch, found, figure):
    small = replace(small, text=None)
    export(small, tmp_path / "out", settings=ExportSettings("torch"))
    before = (tmp_path / "out/config.json").read_bytes()
    monkeypatch.setattr(exporting, "agreement", lambda *_: found)
    with pytest.raises(UserError, match=figure):
        export(small, tmp_path / "out", pruner_of(small), ExportSettings("torch"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/config.json").read_bytes() == before
    assert Encoder.from_pretrained(tmp_path / "out").about.keep == 1


def test_an_interrupted_export_leaves_nothing(small, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "agreement", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(replace(small, text=None), tmp_path / "out", settings=ExportSettings("torch"))
    assert list(tmp_path.iterdir()) == []


def test_bad_input(small, loaded, tmp_path):
    small = replace(small, text=None)
    with pytest.raises(UserError, match="was fitted to 'tiny'"):
        export(small, tmp_path / "out", pruner_of(loaded))
    with pytest.raises(UserError, match="leave --format out"):
        ExportSettings("torch", layout="immich")
    with pytest.raises(UserError, match="Immich needs a text encoder"):
        export(small, tmp_path / "out", settings=ExportSettings(layout="immich"))
    with pytest.raises(UserError, match="leave --classes out"):
        export(small, tmp_path / "out", pruner_of(small), ExportSettings(classes=["cat"]))
    with pytest.raises(UserError, match="preprocessing of 'tiny'"):
        export(replace(small, preprocessing=replace(small.preprocessing, mean=(0.5, 0.5, 0.5))), tmp_path / "out")
    with pytest.raises(UserError, match="There is no exported model"):
        Encoder.from_pretrained(tmp_path / "out")
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        export(small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "image.pt2").write_bytes(b"PK"), "image.pt2' is damaged"),
        (lambda folder: (folder / "image.pt2").unlink(), "image.pt2' is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "There is no exported model"),
        (lambda folder: (folder / "config.json").write_text('{"patchranking_export": 1}'), "config.json.* is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"patchranking_export": 9}'), "of format 9"),
    ],
)
def test_a_damaged_folder_is_told_in_one_sentence(small, tmp_path, harm, said):
    export(replace(small, text=None), tmp_path, settings=ExportSettings("torch"))
    harm(tmp_path)
    with pytest.raises(UserError, match=said):
        Encoder.from_pretrained(tmp_path)


def test_bad_pictures_and_batches(small, tmp_path):
    export(replace(small, text=None), tmp_path, settings=ExportSettings("torch"))
    encoder = Encoder.from_pretrained(tmp_path)
    assert encoder.encode_image([]).shape == (0, 24)
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"note\.txt' cannot be read"):
        encoder.encode_image([tmp_path / "note.txt"])
    with pytest.raises(UserError, match="uint8"):
        encoder.encode_image([np.zeros((3, 32, 32), np.float32)])
    with pytest.raises(UserError, match="1 or more"):
        encoder.encode_image([Image.new("RGB", (9, 9))], batch_size=0)
