from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from patchranking.data import ImageData
from patchranking.data.images import UnreadableImageError
from patchranking.errors import UserError
from patchranking.methods import METHODS, PatchRanking
from patchranking.methods.measure import measure, object_share, zero_shot_classes
from patchranking.methods.random import random_importance
from patchranking.methods.tally import DENSE
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Reduced, attach_reductions
from patchranking.pruning.schedule import Schedule
from patchranking.towers.identity import BaseModel

SCHEDULE = Schedule({1: 0.75, 3: 0.5})
BROKEN = (4, 9)
MEASURES = ("feature_cosine", "top1", "top5", "object_patches_kept")


class Noise(ImageData):
    """Eleven pictures of noise, two of which cannot be read, with an object in each."""

    def __init__(self):
        self.name, self.split, self.templates = "noise", "test", ("a {}.", "one {} there.")
        self.keys = [f"{number}.png" for number in range(11)]
        self.class_names = ["red", "green", "blue", "pink", "cyan", "grey", "black", "white"]
        self.labels = [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 4]
        self.read = []

    def image(self, index):
        self.read.append(index)
        if index in BROKEN:
            raise UnreadableImageError(f"torn {index}")
        return Image.fromarray(np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8))

    def mask(self, index):
        mask, rng = np.zeros((32, 32), bool), np.random.default_rng(99 + index)
        (top, bottom), (left, right) = (np.sort(rng.choice(33, 2, replace=False)) for _ in range(2))
        mask[top:bottom, left:right] = True
        return mask


@pytest.fixture
def data():
    return Noise()


def shares_by_pixels(mask):
    """Share of the object in each of 4 x 4 patches of 8 x 8 pixels, counted."""
    return [mask[8 * r : 8 * r + 8, 8 * c : 8 * c + 8].sum() / mask.sum() for r in range(4) for c in range(4)]


def one_by_one(tower, pixels, scorers):
    """Features of one image with a hook for every stage that scores, sorts and drops; and the patches that stay."""
    alive, last = list(range(16)), {}

    def stage(block, count):
        def reduce(tokens):
            if block in scorers:
                last.update(zip(alive, scorers[block](tokens)[0].tolist(), strict=True))
            stays = sorted(sorted(alive, key=lambda patch: -last[patch])[:count])
            places = [0, *(1 + alive.index(patch) for patch in stays)]
            alive[:] = stays
            return Reduced(tokens[:, places])

        return reduce

    counts = SCHEDULE.kept(16)
    with attach_reductions(tower, {block: stage(block, count) for block, count in counts.items()}):
        return tower(pixels[None])[0], alive


@torch.inference_mode()
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_every_number_equals_a_loop_over_the_images(loaded, data, batch_size):
    tower = loaded.tower
    pruner = Pruner({1: Predictor.for_tower(tower)}, BaseModel.of(tower, "tiny"), SCHEDULE).eval()
    methods = {name: METHODS[name] for name in ("random", "centre-crop", "cls-attention")} | {
        "own": PatchRanking(pruner)
    }
    scorers = {
        "centre-crop": {1: METHODS["centre-crop"].scorer(tower, 1, 5)},
        "cls-attention": {block: METHODS["cls-attention"].scorer(tower, block) for block in (1, 3)},
        "own": {1: pruner},
    }
    some = frozenset({2, 3, 4, 10})
    encodings = {name: method.at(tower, SCHEDULE, 5) for name, method in methods.items()}
    encodings["cls-attention", "some"] = replace(encodings["cls-attention"], images=some)
    tally = measure(loaded, data, encodings, indexed={0, 3, 4, 10}, batch_size=batch_size, progress=None)

    classes = zero_shot_classes(loaded, data)
    expected = {key: {name: {} for name in MEASURES} for key in (DENSE, *encodings)}
    features = {key: {} for key in expected}
    for image in range(11):
        if image in BROKEN:
            continue
        pixels = loaded.preprocess(data.image(image))
        scorers["random"] = {1: lambda _, image=image: random_importance(16, [image], 5)}
        full, shares = tower(pixels[None])[0], shares_by_pixels(data.mask(image))
        for key, found in expected.items():
            if key == DENSE:
                own, alive = full, range(16)
            elif isinstance(key, tuple) and image not in some:
                continue
            else:
                own, alive = one_by_one(tower, pixels, scorers[key[0] if isinstance(key, tuple) else key])
            order = sorted(range(8), key=lambda c, own=own: -float(own @ classes[c]))
            found["feature_cosine"][image] = F.cosine_similarity(own, full, dim=0).item()
            found["top1"][image] = 100.0 * (order[0] == data.labels[image])
            found["top5"][image] = 100.0 * (data.labels[image] in order[:5])
            found["object_patches_kept"][image] = sum(shares[patch] for patch in alive)
            if image in (0, 3, 10):
                features[key][image] = F.normalize(own, dim=0)
    for key, measures in expected.items():
        for name, values in measures.items():
            assert tally.values(key, name) == pytest.approx(values, abs=1e-5)
        assert tally.count(key) == len(measures["top1"])
        images, own = tally.features(key)
        assert images == sorted(features[key])
        torch.testing.assert_close(own, torch.stack([features[key][image] for image in images]), atol=1e-5, rtol=1e-4)
    for name in ("top1", "top5"):  # or the images would tell nothing
        assert {*tally.values(DENSE, name).values()} == {0, 100}
        assert any(tally.values(DENSE, name) != tally.values(key, name) for key in encodings)
    assert tally.skipped == {"4.png": "torn 4", "9.png": "torn 9"}


def test_every_image_is_read_once_and_every_shared_block_runs_once_a_batch(loaded, data):
    tower, calls = loaded.tower, []
    for number, block in enumerate(tower.blocks):
        block.ln_2.register_forward_hook(lambda *_, number=number: calls.append(number))
    names = ("random", "evit", "cls-attention")
    encodings = {name: METHODS[name].at(tower, Schedule({2: 0.5}), 0) for name in names}
    measure(loaded, data, encodings, images=[0, 4, 1, 2, 3, 5, 6], batch_size=3, progress=None)
    assert data.read == [0, 4, 1, 2, 3, 5, 6]
    assert [calls.count(block) for block in range(tower.depth)] == [2, 2, 8, 8, 8]


def test_only_the_images_asked_for_are_measured(loaded, data):
    tally = measure(loaded, data, {}, images=[7, 4, 2], progress=None)
    assert list(tally.values(DENSE, "feature_cosine")) == [7, 2]
    assert tally.skipped == {"4.png": "torn 4"}
    assert tally.features(DENSE)[0] == []


def test_no_readable_image_is_an_error_that_names_one(loaded, data):
    with pytest.raises(UserError, match=r"None of the 2 images can be read, for example '4\.png': torn 4"):
        measure(loaded, data, {}, images=BROKEN, progress=None)


def test_an_encoding_with_classes_of_its_own_is_judged_by_them(loaded, data):
    own = F.normalize(torch.randn(8, 24), dim=-1)
    encoding = METHODS["centre-crop"].at(loaded.tower, SCHEDULE, 0)
    tally = measure(loaded, data, {"own": replace(encoding, classes=own), "zero": encoding}, progress=None)
    readable = list(tally.values(DENSE, "top1"))
    with torch.inference_mode():
        features = encoding(torch.stack([loaded.preprocess(data.image(image)) for image in readable]))
    for key, classes in (("own", own), ("zero", zero_shot_classes(loaded, data))):
        hits = (features @ classes.T).argmax(1).eq(torch.tensor([data.labels[image] for image in readable]))
        assert list(tally.values(key, "top1").values()) == (100.0 * hits).tolist()
    assert tally.values("own", "top1") != tally.values("zero", "top1")


def test_without_classes_or_masks_the_cosine_is_left(loaded, data):
    data.mask = lambda index: None
    encodings = {"m": METHODS["random"].at(loaded.tower, SCHEDULE, 0)}
    for model, labels in ((replace(loaded, text=None), data.labels), (loaded, None)):
        data.labels = labels
        assert zero_shot_classes(model, data) is None
        tally = measure(model, data, encodings, progress=None)
        for key in (DENSE, "m"):
            assert [tally.mean(key, name) is None for name in MEASURES] == [False, True, True, True]


def test_a_batch_with_an_unknown_mask_has_no_share_of_the_object(loaded, data):
    known = data.mask
    data.mask = lambda index: None if index == 6 else known(index)
    encodings = {"m": METHODS["random"].at(loaded.tower, SCHEDULE, 0)}
    tally = measure(loaded, data, encodings, batch_size=3, progress=None)  # 0 1 2, 3 5 6, 7 8 10
    for key in (DENSE, "m"):
        assert list(tally.values(key, "object_patches_kept")) == [0, 1, 2, 7, 8, 10]
        assert tally.count(key) == 9


def test_mixed_tokens_have_no_share_of_the_object(loaded, data):
    encodings = {name: METHODS[name].at(loaded.tower, SCHEDULE, 0) for name in ("evit", "tome", "a-vit")}
    tally = measure(loaded, data, encodings, progress=None)
    found = {name: tally.mean(name, "object_patches_kept") for name in (DENSE, *encodings)}
    assert found["evit"] is found["tome"] is None
    assert 0 < found["a-vit"] < found[DENSE] == pytest.approx(1)


def test_classes_are_the_mean_over_templates(loaded, data):
    texts = [loaded.text([template.format(name) for name in data.class_names]) for template in data.templates]
    torch.testing.assert_close(zero_shot_classes(loaded, data), F.normalize(texts[0] + texts[1], dim=-1))


@pytest.mark.parametrize(("size", "grid"), [((32, 32), (4, 4)), ((12, 30), (3, 5)), ((10, 7), (4, 3))])
def test_object_share_sums_to_one_and_follows_the_mask(size, grid):
    mask = np.random.default_rng(0).random(size) < 0.4
    share = object_share(mask, grid)
    assert share.shape == (grid[0] * grid[1],)
    assert share.sum().item() == pytest.approx(1)
    if size[0] % grid[0] == size[1] % grid[1] == 0:
        counts = mask.reshape(grid[0], size[0] // grid[0], grid[1], size[1] // grid[1]).sum((1, 3))
        np.testing.assert_allclose(share.numpy(), counts.flatten() / mask.sum(), rtol=1e-5)
    assert object_share(np.zeros(size, bool), grid).tolist() == [0] * len(share)
