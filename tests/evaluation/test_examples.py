from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import ImageData
from patchranking.evaluation.examples import View, examples, farthest, stages_passed
from patchranking.evaluation.rows import Entry
from patchranking.methods import METHODS, PatchRanking
from patchranking.methods.batch import Batch
from patchranking.methods.measure import measure
from patchranking.methods.tally import DENSE, Tally
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens
from patchranking.ranking.sketched import sketched
from patchranking.towers.identity import BaseModel


class Noise(ImageData):
    def __init__(self):
        self.name, self.split, self.keys = "noise", "test", [f"{number}.png" for number in range(5)]
        self.class_names, self.labels = ["red", "green"], [1, 0, 0, 1, 1]
        self.templates = ("a {}",)

    def image(self, index):
        return Image.fromarray(np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8))


@pytest.fixture
def methods(loaded):
    base = BaseModel.of(loaded.tower, "tiny")
    pruner = Pruner({2: Predictor.for_tower(loaded.tower)}, base, Schedule({2: 0.5})).eval()
    return [PatchRanking(pruner), *METHODS.values()]


def shown(loaded, data, methods, schedule, images, searched=(), worst=False):
    """Examples of the methods at a schedule, after they are measured."""
    found = [Entry(method, schedule.keep, method.at(loaded.tower, schedule, 0)) for method in methods]
    entries = [
        Entry(e.method, e.keep, replace(e.encoding, images=frozenset(searched))) if e.method.oracle else e
        for e in found
    ]
    tally = measure(loaded, data, {entry: entry.encoding for entry in entries}, progress=None)
    return examples(loaded, data, images, entries, tally, worst), entries, tally


def test_what_is_kept_passes_every_stage():
    view = View(np.array([[2, 0, 1], [1, 2, 2]]), 2)
    assert view.kept.tolist() == [[True, False, False], [False, True, True]]


@torch.inference_mode()
def test_they_show_the_picture_its_class_the_search_and_what_every_stage_keeps(loaded, methods):
    tower, data, schedule = loaded.tower, Noise(), Schedule({2: 0.75, 3: 0.5})
    found, entries, tally = shown(loaded, data, methods, schedule, [4, 1], searched=[4, 0], worst=True)
    assert [(item.caption, item.key, item.worst) for item in found] == [
        ("green", "4.png", True),
        ("red", "1.png", True),
    ]
    for item, image in zip(found, [4, 1], strict=True):
        pixels = loaded.preprocess(data.image(image))[None]
        assert item.image.tobytes() == data.image(image).tobytes()
        assert list(item.views) == ["patchranking", "cls-attention"]
        assert item.prediction == data.class_names[int(tally.values(DENSE, "prediction")[image])]
        tokens = tower.embed(pixels, 2)
        first = tower.class_attention(tokens, 2)[0].topk(12).indices.sort().values
        rest = tower.run(gather_tokens(tokens, first[None], tower.num_prefix_tokens), 2, 3)
        last = first[tower.class_attention(rest, 3)[0].topk(8).indices]
        expected = np.zeros(16, int)
        expected[first] += 1
        expected[last] += 1
        view = item.views["cls-attention"][0.5]
        assert (view.passed.flatten().tolist(), view.stages) == (expected.tolist(), 2)
        entry = next(entry for entry in entries if entry.method.name == "cls-attention")
        assert view.cosine == tally.values(entry.key, "feature_cosine")[image]
        assert view.prediction == data.class_names[int(tally.values(entry.key, "prediction")[image])]
        assert item.views["patchranking"][0.5].kept.sum() == 8
        assert (item.views["patchranking"][0.5].passed > 0).sum() == 12
    searched = sketched(tower, loaded.preprocess(data.image(4))[None], 2).importance.view(4, 4)
    np.testing.assert_array_equal(found[0].importance, searched)
    assert found[1].importance is None


@torch.inference_mode()
def test_a_stage_that_drops_nothing_is_passed_by_all(loaded, methods):
    (item,), _, _ = shown(loaded, Noise(), methods[:1], Schedule({2: 1.0, 3: 0.5}), [3])
    assert sorted(item.views["patchranking"][0.5].passed.flatten()) == [1] * 8 + [2] * 8


def test_what_merges_patches_has_no_stages(loaded):
    merged = METHODS["tome"]
    entry = Entry(merged, 0.5, merged.at(loaded.tower, Schedule({2: 0.5}), 0))
    with torch.inference_mode():
        assert stages_passed(entry, Batch(loaded.tower, torch.randn(1, 3, 32, 32))) is None


def test_without_classes_they_go_by_captions_or_keys(loaded):
    data = Noise()
    data.labels = None
    (item,), _, _ = shown(loaded, data, [METHODS["random"]], Schedule({3: 0.5}), [3])
    assert (item.caption, item.importance, item.views, item.prediction) == ("3.png", None, {}, None)
    data.captions = [[f"picture {number}", "another"] for number in range(5)]
    (item,), _, _ = shown(loaded, data, [METHODS["random"]], Schedule({3: 0.5}), [3])
    assert (item.caption, item.key) == ("picture 3", "3.png")


def test_the_farthest_have_another_prediction_or_else_the_lowest_cosine():
    tally, entry = Tally([0] * 9), Entry(METHODS["random"], 0.5, None)
    full = torch.tensor([[1.0, 0.1], [1.0, 0.1], [1.0, 0.9], [1.0, 0.0]])
    own = torch.tensor([[1.0, 0.3], [1.0, 0.2], [0.9, 1.0], [1.0, 0.9]])
    tally.add(DENSE, [5, 6, 7, 8], full, full, torch.eye(2))
    tally.add(entry.key, [5, 6, 7, 8], own, full, torch.eye(2))
    assert farthest(tally, entry, 9) == [7, 8, 5, 6]
    assert farthest(tally, entry, 2) == [7, 8]
