from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from patchranking import load_data, load_model
from patchranking.errors import UserError
from patchranking.pretrain import loop
from patchranking.pretrain.clip import ClipSettings
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.encoder import make_encoder, save_encoder
from patchranking.pretrain.image_text import ImageText, image_text, matches
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.schedule import CompressionSchedule, Stage

for library in ("open_clip", "lightly"):
    pytest.importorskip(library)

SMALL = ClipSettings(features=8, context=12, width=32, depth=1, min_scale=0.5)
TRAINING = TrainSettings(epochs=3, batch_size=4, evaluations=2, learning_rate=3e-2)
SCHEDULE = CompressionSchedule((Stage(0.0, Compression(8, 0.5)), Stage(0.5, Compression(4))))


@pytest.fixture
def data(noise_folder):
    """Noise, red where it is a cat and blue where it is a dog."""
    folder = noise_folder("noise", ("cat", "dog"), 4)
    for path in folder.glob("*/*.png"):
        pixels = np.array(Image.open(path))
        pixels[..., 0 if path.parent.name == "cat" else 2] = 255
        Image.fromarray(pixels).save(path)
    return load_data(str(folder))


@pytest.fixture
def tower(tmp_path):
    more = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    save_encoder(make_encoder("vit_tiny_patch16_224", 16, 4, more, 0), tmp_path / "tower")
    return tmp_path / "tower"


@pytest.fixture
def schedule(tmp_path):
    SCHEDULE.save(tmp_path / "schedule.yaml")
    return str(tmp_path / "schedule.yaml")


def test_the_loss_is_that_of_clip():
    images, texts = (F.normalize(torch.randn(3, 5), dim=1) for _ in range(2))
    scale, total = torch.tensor(7.0), 0.0
    for a, b in ((images, texts), (texts, images)):
        for one in range(3):
            weights = [math.exp(7 * float(a[one] @ b[other])) for other in range(3)]
            total -= math.log(weights[one] / sum(weights)) / 3 / 2
    assert matches(images, texts, torch.eye(3, dtype=torch.bool), scale).item() == pytest.approx(total, rel=1e-5)


def test_equal_texts_are_no_mistake():
    images = F.normalize(torch.randn(4, 5), dim=1)
    texts = images[[0, 0, 2, 3]]
    images[1] = images[0]
    same = torch.eye(4, dtype=torch.bool)
    same[:2, :2] = True
    scale = torch.tensor(60.0)
    assert matches(images, texts, same, scale) < matches(images, texts, torch.eye(4, dtype=torch.bool), scale) + 1e-6
    assert matches(images, texts, same, scale).item() == pytest.approx(0.5 * math.log(2), abs=0.1)


def test_it_learns_counts_its_budget_and_is_a_model_of_open_clip(data, tower, schedule, tmp_path):
    report = image_text(tower, data, data, tmp_path / "run", SMALL, replace(TRAINING, epochs=20), schedule)
    first, *_, last = report.progress.rows
    assert report.budget == 20 * 8
    assert last["budget"] == pytest.approx(report.budget, rel=0.05)
    assert last["step"] > 20 * 8 / 4
    assert last["loss"] < report.progress.rows[1]["loss"]
    assert (first["zero_shot"], last["zero_shot"]) == (50, 100)
    loaded = load_model(f"open_clip:local-dir:{tmp_path / 'run/model'}")
    assert loaded.tower.feature_size == 8
    again = image_text(tower, data, data, tmp_path / "run", SMALL, replace(TRAINING, epochs=20), schedule)
    assert again == report


def test_captions_are_read_where_there_are_some(data, tower, tmp_path, monkeypatch):
    seen = set()

    def noted(self, views, step):
        seen.update(tuple(ids.tolist()) for ids in views[1])
        return forward(self, views, step)

    forward = ImageText.forward
    monkeypatch.setattr(ImageText, "forward", noted)
    data.captions = [[f"number {index}", f"the {index}"] for index in range(8)]
    image_text(tower, data, None, tmp_path / "captions", SMALL, replace(TRAINING, epochs=8), "none")
    assert len(seen) == 16
    seen.clear()
    data.captions, data.templates = None, ("a {}.", "the {}.", "one {}.")
    image_text(tower, data, None, tmp_path / "classes", SMALL, replace(TRAINING, epochs=8), "none")
    assert len(seen) == 6


def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(data, tower, schedule, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_SECONDS_PER_SAVE", 0.0)
    image_text(tower, data, None, tmp_path / "whole", SMALL, TRAINING, schedule)
    forward, calls = ImageText.forward, []

    def stopping(self, views, step):
        calls.append(step)
        if len(calls) in (3, 8):
            raise KeyboardInterrupt
        return forward(self, views, step)

    monkeypatch.setattr(ImageText, "forward", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            image_text(tower, data, None, tmp_path / "stopped", SMALL, TRAINING, schedule)
    image_text(tower, data, None, tmp_path / "stopped", SMALL, TRAINING, schedule)
    whole, resumed = (load_file(tmp_path / run / "model/open_clip_model.safetensors") for run in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_what_cannot_be_is_one_sentence(data, tower, tmp_path):
    image_text(tower, data, None, tmp_path / "run", SMALL, TRAINING, "none")
    with pytest.raises(UserError, match="holds the progress of another pretraining"):
        image_text(tower, data, None, tmp_path / "run", SMALL, TRAINING, "default")
    with pytest.raises(UserError, match="Could not load the model"):
        image_text(tmp_path / "none", data, None, tmp_path / "other", SMALL, TRAINING)
    data.labels = None
    with pytest.raises(UserError, match="neither captions nor classes"):
        image_text(tower, data, None, tmp_path / "other", SMALL, TRAINING)
