from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import ImageData
from patchranking.evaluation.examples import Example, examples
from patchranking.methods import METHODS, PatchRanking
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.sketched import sketched
from patchranking.towers.identity import BaseModel


class Noise(ImageData):
    def __init__(self):
        self.name, self.split, self.keys = "noise", "test", [f"{number}.png" for number in range(5)]
        self.class_names, self.labels = ["red", "green"], [1, 0, 0, 1, 1]

    def image(self, index):
        return Image.fromarray(np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8))


@pytest.fixture
def methods(loaded):
    base = BaseModel.of(loaded.tower, "tiny")
    pruner = Pruner({2: Predictor.for_tower(loaded.tower)}, base, Schedule({2: 0.5})).eval()
    return [PatchRanking(pruner), *METHODS.values()]


def places(scores):
    """Place of every patch among those of an image, 0 = highest, by counting the better ones."""
    return [[sum(other > score for other in scores).item() for score in row] for row in scores.view(4, 4)]


def test_what_is_kept_are_the_first_places():
    item = Example(Image.new("RGB", (8, 8)), "a", places={"random": np.array([[3, 0, 5], [1, 2, 4]])})
    assert item.kept("random", 0.5).tolist() == [[False, True, False], [True, True, False]]
    assert item.kept("random", 0.01).tolist() == [[False, True, False], [False, False, False]]
    assert item.kept("random", 1.0).all()


def test_they_show_the_picture_its_class_the_search_and_what_methods_choose_first(loaded, methods):
    tower, data = loaded.tower, Noise()
    shown = examples(loaded, data, [4, 1], methods, 2, golden=True)
    assert [item.caption for item in shown] == ["green", "red"]
    for item, image in zip(shown, [4, 1], strict=True):
        pixels = loaded.preprocess(data.image(image))[None]
        assert item.image.tobytes() == data.image(image).tobytes()
        np.testing.assert_array_equal(item.importance, sketched(tower, pixels, 2).importance.view(4, 4))
        assert list(item.places) == ["patchranking", "cls-attention"]
        with torch.inference_mode():
            tokens = tower.embed(pixels, 2)
            assert item.places["patchranking"].tolist() == places(methods[0].pruner(tokens)[0])
            assert item.places["cls-attention"].tolist() == places(tower.class_attention(tokens, 2)[0])


def test_without_classes_they_go_by_their_keys_and_without_the_oracle_there_is_no_search(loaded):
    data = Noise()
    data.labels = None
    (item,) = examples(loaded, data, [3], [METHODS["random"]], 3, golden=False)
    assert (item.caption, item.importance, item.places) == ("3.png", None, {})
