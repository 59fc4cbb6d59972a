from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking import Encoder, ExportSettings, Pruner, UserError, export
from patchranking.exporting import check
from patchranking.exporting import export as exporting
from patchranking.exporting.check import Agreement, agreement, pictures
from patchranking.exporting.modules import ImageSide
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.schedule import Schedule

ALONE = """import sys
for name in ("torch", "patchranking", "torchvision", "transformers", "open_clip", "onnx"):
    sys.modules[name] = None
"""


def pruner_of(loaded, keep=0.5):
    torch.manual_seed(0)
    return Pruner.unfitted(loaded.tower, "tiny", Schedule({1: 0.5})).at(keep)


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory):
    """A dense export."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(images, folder, settings=ExportSettings("torch"))
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A dense export to do harm to."""
    return shutil.copytree(exported, tmp_path / "out")


@pytest.fixture
def onto_pictures(tinier):
    """What the library returns for the pictures of a check."""
    pixels = torch.stack([tinier.preprocess(picture) for picture in pictures(0)])

    def encode(pruner):
        with torch.inference_mode(), pruner.attached(tinier.model):
            return tinier.model.encode_image(pixels).numpy()

    return encode


def printed(folder, picture, before=""):
    """What the program of a folder's README prints for a picture."""
    (program,) = re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(program.splitlines()) < 18
    command = [sys.executable, "-c", before + program, str(picture)]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


def test_a_folder_runs_without_this_package_and_by_the_encoder(tinier, onto_pictures, tmp_path):
    pruner, out = pruner_of(tinier), tmp_path / "out"
    prompts = Prompts("text", 16, 32, 2, class_names=["cat", "dog"], features=24)
    prompts.class_features.copy_(torch.nn.functional.normalize(torch.randn(2, 24), dim=-1))
    pruner = pruner.tuned_by(prompts)
    about = export(tinier, out, pruner)
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
    np.testing.assert_allclose(encoder.encode_text(texts), tinier.text(texts), atol=1e-5)
    np.testing.assert_allclose(encoder.class_features, prompts.class_features)
    np.testing.assert_allclose(printed(out, tmp_path / "three.png", ALONE), expected[3], atol=1e-4)


@pytest.mark.parametrize("format", ["openvino", "torch"])
def test_other_formats_in_place_of_an_export(images, onto_pictures, folder, tmp_path, format):
    pruner = pruner_of(images, 0.25)
    about = export(images, folder, pruner, ExportSettings(format))
    assert about.context_length is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (folder / "image.pt2").exists() == (format == "torch")
    encoder = Encoder.from_pretrained(folder)
    np.testing.assert_allclose(encoder.encode_image(list(pictures(0))), onto_pictures(pruner), atol=1e-4)
    assert encoder.run(np.zeros((2, 3, 32, 32), np.float32))[1].shape == (2, 4)
    with pytest.raises(UserError, match="has no text encoder"):
        encoder.encode_text(["a cat"])
    picture, turned = next(pictures(0)), Image.Exif()
    turned[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "one.png", exif=turned)
    np.testing.assert_allclose(printed(folder, tmp_path / "one.png"), onto_pictures(pruner)[0], atol=1e-4)


def test_what_immich_reads(tinier, tmp_path):
    export(tinier, tmp_path, settings=ExportSettings(layout="immich"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["text_cfg"]["context_length"] == 24
    told = json.loads((tmp_path / "visual/preprocess_cfg.json").read_text())
    assert (told["size"], told["interpolation"], told["resize_mode"]) == ([32, 32], "bicubic", "squash")
    assert json.loads((tmp_path / "textual/tokenizer_config.json").read_text())["pad_token"]
    encoder = Encoder.from_pretrained(tmp_path)
    (features,) = encoder.run(np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(["a cat"]), tinier.text(["a cat"]), atol=1e-5)


def test_what_differs_is_refused_with_the_figure(images):
    pixels = torch.stack([images.preprocess(picture) for picture in pictures(0)])
    mine, other = (ImageSide(images.tower, pruner_of(images, keep)) for keep in (0.5, 0.25))

    @torch.inference_mode()
    def run(batch):
        features, kept = mine(torch.from_numpy(batch))
        return [features.numpy(), (15 - kept if len(batch) == 3 else kept).numpy()]

    found = agreement(run, mine, pixels)
    assert found == Agreement(pytest.approx(1.0), 0.75)
    with pytest.raises(UserError, match=r"The image encoder was not written.* in 75% of the images"):
        found.check("The image encoder")
    found = agreement(lambda batch: [run(batch)[0] + batch.max(), run(batch)[1]], mine, pixels)
    with pytest.raises(UserError, match=f"cosine of {found.cosine:.6f} to PyTorch's"):
        found.check("The image encoder")
    assert agreement(run, other, pixels) == Agreement(0.0, 0.0)


def test_a_refused_export_leaves_what_was_there(images, folder, tmp_path, monkeypatch):
    before = (folder / "config.json").read_bytes()
    monkeypatch.setattr(check, "LEAST_COSINE", 1.01)
    with pytest.raises(UserError, match="was not written"):
        export(images, folder, pruner_of(images), ExportSettings("torch"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (folder / "config.json").read_bytes() == before
    assert Encoder.from_pretrained(folder).about.keep == 1


def test_an_interrupted_export_leaves_nothing(images, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "agreement", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(images, tmp_path / "out", settings=ExportSettings("torch"))
    assert list(tmp_path.iterdir()) == []


def test_bad_input(images, loaded, tmp_path):
    with pytest.raises(UserError, match="was fitted to 'tiny'"):
        export(images, tmp_path / "out", pruner_of(loaded))
    with pytest.raises(UserError, match="leave --format out"):
        ExportSettings("torch", layout="immich")
    with pytest.raises(UserError, match="Immich needs a text encoder"):
        export(images, tmp_path / "out", settings=ExportSettings(layout="immich"))
    with pytest.raises(UserError, match="leave --classes out"):
        export(images, tmp_path / "out", pruner_of(images), ExportSettings(classes=["cat"]))
    with pytest.raises(UserError, match="preprocessing of 'tiny'"):
        export(replace(images, preprocessing=replace(images.preprocessing, mean=(0.5, 0.5, 0.5))), tmp_path / "out")
    with pytest.raises(UserError, match="preprocessing of 'tiny'"):
        export(replace(images, preprocessing=None), tmp_path / "out")
    with pytest.raises(UserError, match="There is no exported model"):
        Encoder.from_pretrained(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_of_an_export_stays(images, folder, tmp_path):
    (folder / "photos").mkdir()
    (folder / "photos/note.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out, other in ((folder, folder / "photos/note.txt"), (tmp_path / "file", tmp_path / "file")):
        with pytest.raises(UserError, match=re.escape(f"'{other}' is no part of an exported model")):
            export(images, out)
        assert other.read_text() == "mine"
    assert Encoder.from_pretrained(folder).about.keep == 1


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
def test_a_damaged_folder_is_told_in_one_sentence(folder, harm, said):
    harm(folder)
    with pytest.raises(UserError, match=said):
        Encoder.from_pretrained(folder)


def test_bad_pictures_and_batches(exported, tmp_path):
    encoder = Encoder.from_pretrained(exported)
    assert encoder.encode_image([]).shape == (0, 24)
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"note\.txt' cannot be read"):
        encoder.encode_image([tmp_path / "note.txt"])
    with pytest.raises(UserError, match="uint8"):
        encoder.encode_image([np.zeros((3, 32, 32), np.float32)])
    with pytest.raises(UserError, match="1 or more"):
        encoder.encode_image([Image.new("RGB", (9, 9))], batch_size=0)
