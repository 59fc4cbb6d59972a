from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import load_data
from patchranking.fitting import fit, held_out
from patchranking.fitting.held_out import measure_held_out
from patchranking.fitting.settings import FitSettings
from patchranking.predictor.distill import Distillation
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.objectives import feature_damage
from patchranking.sharing.measured import Measured

SCHEDULE = Schedule({1: 0.8, 3: 0.5})


@pytest.fixture
def birds(noise_folder):
    """Twelve pictures of noise in two classes."""
    return load_data(str(noise_folder("birds", ["red tit", "blue tit"], 6)))


@torch.inference_mode()
def test_the_figures_are_those_of_the_images_held_out(tiny, birds):
    pruner, chosen = Pruner.unfitted(tiny.tower, "tiny", SCHEDULE), [0, 3, 7, 8]
    found = measure_held_out(tiny, birds, chosen, pruner, 8, None)
    assert (found.dataset, found.n_train, found.n_images, found.n_classes) == (birds.name, 8, 4, 2)
    assert [row["keep_rate"] for row in found.rows] == [0.7, 0.5, 0.3]
    pixels = torch.stack([tiny.preprocess(birds.image(index)) for index in chosen])
    dense = tiny.tower(pixels)
    for row in found.rows:
        with pruner.at(row["keep_rate"]).attached(tiny.tower):
            features = tiny.tower(pixels)
        assert row["feature_cosine"] == pytest.approx(1 - feature_damage(features, dense).mean().item(), abs=1e-5)
        assert 0 < row["macs_share"] < 1
        assert row["top1"] in (0, 25, 50, 75, 100)
        assert row["images_per_second"] > 0
    assert not {"command", "git_commit"} & {*found.environment}


def test_no_more_than_some_images_and_texts_are_encoded(tiny, birds, monkeypatch):
    monkeypatch.setattr(held_out, "_IMAGES", 3)
    monkeypatch.setattr(held_out, "_TEXTS", 4)
    texts = []
    encode = tiny.text.__class__.__call__
    monkeypatch.setattr(tiny.text.__class__, "__call__", lambda self, given: texts.extend(given) or encode(self, given))
    birds.templates = ("a {}.", "the {}.", "one {}.")
    found = measure_held_out(tiny, birds, range(9), Pruner.unfitted(tiny.tower, "tiny", SCHEDULE), 3, None)
    assert (found.n_images, len(texts), found.rows[0]["top1"] is None) == (3, 4, False)
    monkeypatch.setattr(held_out, "_TEXTS", 1)
    found = measure_held_out(tiny, birds, range(9), Pruner.unfitted(tiny.tower, "tiny", SCHEDULE), 3, None)
    assert (found.n_classes, found.rows[0]["top1"]) == (0, None)
    assert birds.labels is not None


def test_a_pruner_that_preserves_tokens_has_the_figures_of_its_distillation(tiny, birds):
    pruner = Pruner.unfitted(tiny.tower, "tiny", SCHEDULE)
    of_tokens = Pruner({1: pruner.predictor(1)}, pruner.base, SCHEDULE, hands_on=-1)
    distilled = Distillation(8, 4, 2, "32-true", {"0.8": 0.125, "0.5": 0.25})
    found = measure_held_out(tiny, birds, range(4), of_tokens, 8, distilled)
    assert found.rows == [{"keep_rate": 0.8, "token_cosine": 0.875}, {"keep_rate": 0.5, "token_cosine": 0.75}]
    assert found.timing_batch == 0


def test_a_fit_measures_what_it_held_out_and_nothing_else_changes(tiny, birds, tmp_path, monkeypatch):
    """The weights and the report are those of a fit that measures nothing, and so are the bytes of the weights."""
    settings = FitSettings(steps=2, network="mlp", schedule={1: 0.8, 3: 0.5})
    pruner, report = fit.fit(tiny, birds, tmp_path / "measured", settings)
    assert pruner.measured.n_images == report.distillation.n_held_out
    assert pruner.measured.n_train == report.distillation.n_train
    error = report.distillation.feature_error["0.5"]
    assert pruner.measured.at(0.5)["feature_cosine"] == pytest.approx(1 - error, abs=1e-3)
    assert Pruner.from_pretrained(tmp_path / "measured").measured == pruner.measured
    monkeypatch.setattr(fit, "measure_held_out", lambda *_: None)
    plain, again = fit.fit(tiny, birds, tmp_path / "plain", settings)
    assert (plain.measured, again) == (None, report)
    for name in ("model.safetensors", "fit.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "measured" / name).read_bytes()


def test_images_without_classes_have_no_accuracy(tiny, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / f"{index}.png")
    data = load_data(str(tmp_path))
    found = measure_held_out(tiny, data, range(3), Pruner.unfitted(tiny.tower, "tiny", SCHEDULE), 3, None)
    assert isinstance(found, Measured)
    assert (found.n_classes, found.rows[0]["top1"], found.rows[0]["top1_dense"]) == (0, None, None)
    assert found.rows[0]["index_overlap_at_10"] is not None
