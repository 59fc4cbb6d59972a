from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking import load_data, load_model
from patchranking.tuning.views import Views, augmentation


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, number in (("cat", 6), ("dog", 3)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(number):
            noise = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
            noise.save(tmp_path / "train" / name / f"{index}.png")
    return tmp_path / "train"


def test_crops_are_of_the_models_size_and_on_its_scale():
    model = load_model("demo")
    plain = Image.new("RGB", (96, 64), (255, 128, 0))
    view = augmentation(model)(plain)
    assert view.shape == (3, *model.tower.image_size)
    assert torch.allclose(view, model.preprocess(plain), atol=1e-5)


def test_crops_take_half_of_the_picture_or_more(tiny):
    """Red grows from left to right and green from top to bottom, so that a crop tells where it was taken."""
    across = np.tile(np.linspace(0, 250, 251).astype(np.uint8), (251, 1))
    picture = Image.fromarray(np.stack([across, across.T, across], 2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tiny.mean, tiny.std))
    crop, shares = augmentation(tiny), []
    for _ in range(60):
        red, green, _ = crop(picture) * std + mean
        width, height = (red[:, -1] - red[:, 0]).abs().mean(), (green[-1] - green[0]).abs().mean()
        shares.append((width * height * (255 / 250 * 32 / 31) ** 2).item())
    assert 0.48 < min(shares) < 0.56
    assert 0.9 < max(shares) < 1.02


def test_crops_differ_and_half_of_them_are_mirrored():
    model = load_model("demo")
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).convert("RGB")
    torch.manual_seed(0)
    views = [augmentation(model)(ramp) for _ in range(40)]
    mirrored = sum((view[0, :, 0] > view[0, :, -1]).all().item() for view in views)
    assert 10 < mirrored < 30
    assert len({view.sum().item() for view in views}) > 20


def test_a_view_depends_on_its_place_alone(folder):
    data = load_data(str(folder))

    def view(image):
        return torch.rand(2) + np.asarray(image).mean()

    views = Views(data, [0, 0, 7], view, seed=3)
    forwards = [views[item][0] for item in range(3)]
    torch.manual_seed(99)
    backwards = [views[item][0] for item in (2, 1, 0)]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards[::-1], strict=True))
    assert not torch.equal(forwards[0], forwards[1])
    assert [views[item][1] for item in range(3)] == [0, 0, 1]
    assert not torch.equal(Views(data, [0], view, seed=4)[0][0], forwards[0])


def test_a_captioned_image_comes_with_one_of_its_captions_and_each_has_its_turn(folder):
    data = load_data(str(folder))
    data.captions = [[f"{index} {word}" for word in ("red", "green", "blue")] for index in range(9)]
    views = Views(data, [4] * 30 + [2], lambda image: torch.rand(2), seed=0)
    captions = [views[item][1] for item in range(31)]
    assert {*captions[:30]} == {"4 red", "4 green", "4 blue"}
    assert captions[30].startswith("2 ")
    assert captions == [views[item][1] for item in range(31)]
    assert len(views) == 31


def test_looking_at_views_leaves_the_random_numbers_alone(folder):
    views = Views(load_data(str(folder)), [0, 1], lambda image: torch.rand(2), seed=0)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    _ = [views[item] for item in range(2)]
    assert torch.equal(torch.rand(3), expected)
