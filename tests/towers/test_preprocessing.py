from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor

from patchranking.towers.preprocessing import Preprocessing, read_preprocessing
from patchranking.towers.transformers.load import _numbers

MEAN, STD = [0.48, 0.45, 0.4], [0.27, 0.26, 0.28]


@pytest.fixture(params=[(50, 37), (41, 90), (32, 32), (33, 64)])
def picture(request):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    return small.resize(request.param, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clip(picture, mode):
    options = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": mode}
    library = image_transform_v2(PreprocessCfg(size=32, **options), is_train=False)
    numbers = Preprocessing.from_dict({"size": 32, **options})
    np.testing.assert_allclose(numbers(picture), library(picture), atol=1e-5)
    assert Preprocessing.from_dict(numbers.to_dict()) == numbers
    assert PreprocessCfg(**numbers.to_dict()).size == [32, 32]


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_timm(picture, share):
    about = {"input_size": (3, 32, 32), "interpolation": "bilinear", "mean": MEAN, "std": STD, "crop_pct": share}
    library = timm.data.create_transform(**about, crop_mode="center", is_training=False)
    numbers = Preprocessing.from_dict(about | {"size": (32, 32), "resize_mode": "shortest"})
    np.testing.assert_allclose(numbers(picture), library(picture), atol=1e-5)


class Tower:
    image_size = (32, 32)


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessor(size={"shortest_edge": 36}, crop_size=32, image_mean=MEAN, image_std=STD),
        SiglipImageProcessor(size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD),
    ],
    ids=["clip", "siglip"],
)
def test_transformers(picture, processor):
    library = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    known = _numbers(processor, Tower, MEAN, STD)
    assert Preprocessing.from_dict(known.to_dict()) == known
    numbers = torch.from_numpy(known(picture))
    assert (numbers - library).norm() < 0.02 * library.norm()


@pytest.mark.parametrize(
    "change",
    [{"resize_mode": "longest"}, {"size": (32, 48)}, {"interpolation": "random"}, {"mode": "L"}, {"mean": None}],
)
def test_what_numbers_cannot_say_is_none(change):
    about = {"size": 32, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    assert read_preprocessing(about) is not None
    assert read_preprocessing(about | change) is None
