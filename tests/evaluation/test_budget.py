from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.evaluation.budget import Budget, OperatingPoint, choose, measure_curve
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers.base_model import BaseModel


@pytest.mark.parametrize(
    ("text", "expected"), [("0.5 points", (0.5, "points")), (" .98cosine", (0.98, "cosine")), ("40 ms", (40, "ms"))]
)
def test_budgets_are_read(text, expected):
    budget = Budget.parse(text)
    assert (budget.value, budget.kind) == expected


@pytest.mark.parametrize("text", ["", "0.5", "points", "-1 points", "1.2 cosine", "0 ms", "5 s"])
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match=r"reads '0\.5 points'"):
        Budget.parse(text)


def point(keep, gmacs, cosine, lost=None, ms=None):
    return OperatingPoint(Schedule({3: keep}), gmacs, cosine, lost, ms)


CURVE = [
    point(0.9, 9, 0.99, 0.0, 30.0),
    point(0.7, 7, 0.98, 0.5, 25.0),
    point(0.6, 6, 0.975, 0.4, 26.0),
    point(0.5, 5, 0.95, 2.0, 20.0),
]


@pytest.mark.parametrize(
    ("budget", "keep"), [("0.5 points", 0.6), ("0.98 cosine", 0.7), ("0 points", 0.9), ("26 ms", 0.7), ("99 ms", 0.9)]
)
def test_the_cheapest_within_a_loss_or_the_truest_within_a_time(budget, keep):
    assert choose(CURVE, Budget.parse(budget)).schedule.keep == keep


def test_what_cannot_be_met_or_was_not_measured_is_said():
    with pytest.raises(UserError, match=r"within 0\.999 cosine: the nearest reaches 0\.99"):
        choose(CURVE, Budget.parse("0.999 cosine"))
    with pytest.raises(UserError, match="within 10 ms: the nearest reaches 20"):
        choose(CURVE, Budget.parse("10 ms"))
    with pytest.raises(UserError, match="needs labelled images"):
        choose([point(0.9, 9, 0.99)], Budget.parse("1 points"))
    with pytest.raises(UserError, match="no times"):
        choose([point(0.9, 9, 0.99)], Budget.parse("1 ms"))


def test_the_curve_is_that_of_the_attached_pruner(loaded, tmp_path):
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    data = load_data(str(tmp_path))
    tower = loaded.tower
    pruner = Pruner({1: Predictor(tower.width, 1, 16)}, BaseModel.of(tower, "tiny"), Schedule({1: 0.5})).eval()
    curve = measure_curve(loaded, data, pruner, rates=(1.0, 0.5), timing_batch=2, batch_size=2)
    assert [found.schedule.to_dict() for found in curve] == [
        {"1": 1.0},
        {"1": 0.5},
        {"1": 1.0, "3": 1.0},
        {"1": 0.75, "3": 0.5},
    ]
    pixels = torch.stack(
        [loaded.preprocess(data.image(index)) for index in range(4) if "broken" not in data.keys[index]]
    )
    with torch.inference_mode():
        full = tower(pixels)
        for found in curve:
            staged = pruner.scheduled(found.schedule)
            with staged.attached(tower):
                cosine = torch.nn.functional.cosine_similarity(tower(pixels), full).mean().item()
            assert found.feature_cosine == pytest.approx(cosine, abs=1e-5)
    assert curve[0].feature_cosine == pytest.approx(1, abs=1e-6)
    assert curve[1].gmacs < curve[3].gmacs < curve[0].gmacs == curve[2].gmacs
    assert all(found.milliseconds > 0 and found.points_lost is None for found in curve)
    assert pruner.schedule.to_dict() == {"1": 0.5}
