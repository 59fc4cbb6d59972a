from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import ImageData, load_data, subset
from patchranking.errors import UserError
from patchranking.evaluation import budget
from patchranking.evaluation.budget import Budget, OperatingPoint, choose, measure_curve
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.predictor.networks import Predictor
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers.identity import BaseModel


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5 points", (0.5, "points")),
        ("2 recall", (2, "recall")),
        (" .98cosine", (0.98, "cosine")),
        ("0.95 overlap", (0.95, "overlap")),
        ("40 ms", (40, "ms")),
    ],
)
def test_budgets_are_read(text, expected):
    budget = Budget.parse(text)
    assert (budget.value, budget.kind) == expected


@pytest.mark.parametrize("text", ["", "0.5", "points", "-1 points", "1.2 cosine", "1.2 overlap", "0 ms", "5 s"])
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match=r"reads '0\.5 points'"):
        Budget.parse(text)


def point(keep, gmacs, cosine, lost=None, ms=None, overlap=None, recall=None):
    return OperatingPoint(Schedule({3: keep}), gmacs, cosine, lost, ms, overlap, recall)


CURVE = [
    point(0.9, 9, 0.99, 0.0, 30.0, 0.9, -1.0),
    point(0.7, 7, 0.98, 0.5, 25.0, 0.8, 1.0),
    point(0.6, 6, 0.975, 0.4, 26.0, 0.85, 0.5),
    point(0.5, 5, 0.95, 2.0, 20.0, 0.7, 3.0),
]


@pytest.mark.parametrize(
    ("budget", "keep"),
    [
        ("0.5 points", 0.6),
        ("0 points", 0.9),
        ("0.4 recall", 0.9),
        ("0.5 recall", 0.6),
        ("0.98 cosine", 0.7),
        ("0.85 overlap", 0.6),
        ("0.9 overlap", 0.9),
        ("26 ms", 0.7),
        ("99 ms", 0.9),
    ],
)
def test_the_cheapest_within_a_loss_or_the_truest_within_a_time(budget, keep):
    assert choose(CURVE, Budget.parse(budget)).schedule.keep == keep


@pytest.mark.parametrize("shift", range(4))
def test_the_order_of_the_curve_does_not_matter(shift):
    curve = CURVE[shift:] + CURVE[:shift]
    assert choose(curve, Budget.parse("2 points")) is CURVE[3]
    assert choose(curve, Budget.parse("0.975 cosine")) is CURVE[2]
    assert choose(curve, Budget.parse("27 ms")) is CURVE[1]


def test_what_cannot_be_met_or_was_not_measured_is_said():
    with pytest.raises(UserError, match=r"within 0\.999 cosine: the nearest reaches 0\.99\. Fit to more images"):
        choose(CURVE, Budget.parse("0.999 cosine"))
    with pytest.raises(UserError, match=r"within 0\.95 overlap: the nearest reaches 0\.9\. Fit"):
        choose(CURVE, Budget.parse("0.95 overlap"))
    with pytest.raises(UserError, match=r"within 10 ms: the nearest reaches 20\. Allow more time, or take a smaller"):
        choose(CURVE, Budget.parse("10 ms"))
    with pytest.raises(UserError, match="needs labelled images"):
        choose([point(0.9, 9, 0.99)], Budget.parse("1 points"))
    with pytest.raises(UserError, match="needs captioned images"):
        choose([point(0.9, 9, 0.99)], Budget.parse("1 recall"))
    with pytest.raises(UserError, match="2 images or more"):
        choose([point(0.9, 9, 0.99)], Budget.parse("0.5 overlap"))
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


class Labelled(ImageData):
    def __init__(self):
        self.name, self.split, self.keys = "noise", "test", [str(number) for number in range(12)]
        self.class_names, self.templates = ["red", "green", "blue"], ("a {}.",)
        self.labels = [number % 3 for number in range(12)]

    def image(self, index):
        return Image.fromarray(np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8))


def test_points_are_those_lost_and_times_those_of_a_batch_without_tuned_tokens(loaded, monkeypatch):
    tower, data, seen = loaded.tower, Labelled(), []

    def timed(runs, pixels):
        seen.append((list(runs), tuple(pixels.shape)))
        return {schedule: 50.0 * (number + 1) for number, schedule in enumerate(runs)}

    monkeypatch.setattr(budget, "images_per_second", timed)
    prompts = Prompts("visual", 16, tower.width, num_tokens=2)
    fitted = Schedule({1: 0.7, 2: 0.5})
    pruner = Pruner({1: Predictor.for_tower(tower)}, BaseModel.of(tower, "tiny"), fitted, 0.9, prompts).eval()
    curve = measure_curve(loaded, data, pruner, rates=(0.75, 0.25), timing_batch=5)
    schedules = [Schedule.spread(blocks, rate) for blocks in ([1, 2], [1], [1, 3]) for rate in (0.75, 0.25)]
    assert [found.schedule for found in curve] == schedules
    assert seen == [(schedules, (5, 3, 32, 32))]
    assert [found.milliseconds for found in curve] == pytest.approx([1000 * 5 / (50 * n) for n in range(1, 7)])
    pixels = torch.stack([loaded.preprocess(data.image(index)) for index in range(12)])
    classes, labels = loaded.text([f"a {name}." for name in data.class_names]), torch.tensor(data.labels)

    def top1(features):
        return 100 * (features @ classes.T).argmax(1).eq(labels).float().mean().item()

    with torch.inference_mode():
        for found in curve:
            with pruner.untuned.scheduled(found.schedule).attached(tower):
                own = top1(tower(pixels))
            assert found.points_lost == pytest.approx(top1(tower(pixels)) - own)
            assert found.gmacs == pytest.approx(analytic_macs(tower, 24, found.schedule) / 1e9)
    assert len({found.points_lost for found in curve}) > 1
    assert (pruner.keep, pruner.tuned) == (0.9, "visual")


def test_nothing_is_timed_without_a_batch_and_the_default_rates_go_from_95_to_30(loaded):
    pruner = Pruner(
        {4: Predictor.for_tower(loaded.tower)}, BaseModel.of(loaded.tower, "tiny"), Schedule({4: 0.5})
    ).eval()
    curve = measure_curve(loaded, Labelled(), pruner)
    assert [found.schedule.to_dict() for found in curve] == [{"4": rate / 100} for rate in range(95, 29, -5)]
    assert {found.milliseconds for found in curve} == {None}
    assert {found.index_overlap for found in curve} == {None}


class Captioned(Labelled):
    def __init__(self):
        super().__init__()
        self.labels, self.captions = None, [[f"{self.class_names[n % 3]} {n}"] for n in range(12)]


def test_overlap_and_recall_are_those_of_evaluate(loaded):
    data, skipped = Captioned(), {}
    pruner = Pruner.unfitted(loaded.tower, "tiny", Schedule({1: 0.5}))
    settings = EvaluationSettings(methods=[], keep=[0.75, 0.25], timing_batch=0, examples=0)
    rows = {row["keep_rate"]: row for row in evaluate(loaded, data, [pruner], settings)[0]["rows"]}
    curve = measure_curve(loaded, data, pruner, rates=(0.75, 0.25), indexed=True, skipped=skipped)
    assert skipped == {}
    for found in curve[:2]:
        row = rows[found.schedule.keep]
        assert found.index_overlap == pytest.approx(row["index_overlap_at_10"])
        assert found.recall_lost == pytest.approx(rows[1.0]["recall_at_1"] - row["recall_at_1"])
    assert len({found.index_overlap for found in curve}) > 1
    assert len({found.recall_lost for found in curve}) > 1


@pytest.mark.parametrize(
    ("budget", "data", "needs"),
    [
        ("1 points", Captioned(), "labelled images"),
        ("1 recall", Labelled(), "captioned images"),
        ("0.9 overlap", subset(Labelled(), 1, 0), "2 images or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(loaded, budget, data, needs):
    Budget.parse(budget).check(loaded, Labelled() if "points" in budget else Captioned())
    with pytest.raises(UserError, match=needs):
        Budget.parse(budget).check(loaded, data)
    if "overlap" not in budget:
        with pytest.raises(UserError, match="a model with a text tower"):
            Budget.parse(budget).check(replace(loaded, text=None), Labelled() if "points" in budget else Captioned())
    for other in ("0.9 cosine", "5 ms"):
        Budget.parse(other).check(replace(loaded, text=None), data)


def test_another_models_pruner_is_refused(loaded, tower):
    pruner = Pruner({4: Predictor.for_tower(tower)}, BaseModel.of(tower, "other"), Schedule({4: 0.5})).eval()
    with pytest.raises(UserError, match="fitted to 'other'"):
        measure_curve(loaded, Labelled(), pruner)
