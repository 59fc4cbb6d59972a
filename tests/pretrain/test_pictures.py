from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking import load_data
from patchranking.errors import UserError
from patchranking.pretrain.pictures import Batches, Shuffled, Views, drop_noise, read_pictures


@pytest.fixture
def folder(noise_folder):
    return noise_folder("noise", ("cat", "dog"), 4)


def view(image):
    return [torch.rand(2), torch.tensor(np.random.random_sample(2)), torch.tensor(image.getpixel((0, 0)))]


def test_every_picture_is_read_and_accounted_for(folder):
    (folder / "cat" / "9.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    data = load_data(str(folder))
    pictures = read_pictures(data, 8, progress=False)
    assert len(pictures) + len(pictures.skipped) == len(data) == 9
    assert list(pictures.skipped) == ["cat/9.png"]
    assert {picture.size for picture in pictures.kept} == {(16, 16)}
    large = read_pictures(data, 8, in_memory=False, progress=False)
    assert not large.kept
    assert large[3].size == (32, 32)


def test_long_pictures_keep_their_shape(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (100, 40)).save(tmp_path / f"{name}.png")
    assert read_pictures(load_data(str(tmp_path)), 10, progress=False)[0].size == (50, 20)


def test_unreadable_folders_are_one_sentence(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="None of the 2 images can be read"):
        read_pictures(load_data(str(tmp_path)), 8, progress=False)


def test_an_item_is_the_same_whoever_asks_for_it_and_when(folder):
    pictures = read_pictures(load_data(str(folder)), 16, progress=False)
    views = Views(pictures, Shuffled(8, 1), view, 1)
    torch.manual_seed(5)
    np.random.seed(5)
    expected = [np.random.random_sample(), torch.rand(1).item()]
    first = [views[item] for item in range(24)]
    again = Views(pictures, Shuffled(8, 1), view, 1)
    torch.manual_seed(5)
    np.random.seed(5)
    for item in (17, 3, 9, 3):
        assert all(torch.equal(a, b) for a, b in zip(again[item], first[item], strict=True))
    assert [np.random.random_sample(), torch.rand(1).item()] == expected
    for epoch in range(3):
        shown = {tuple(item[2].tolist()) for item in first[8 * epoch : 8 * epoch + 8]}
        assert len(shown) == 8
    assert not torch.equal(first[0][0], first[8][0])


def test_the_processes_share_each_step():
    whole = list(islice(Batches(2, 6), 3))
    parts = [list(islice(Batches(2, 6, rank, 2), 3)) for rank in range(2)]
    assert whole == [list(range(12, 18)), list(range(18, 24)), list(range(24, 30))]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == whole


def test_the_processes_drop_what_one_would():
    whole = drop_noise(3, 5, 6)
    parts = [drop_noise(3, 5, 6, rank, 2) for rank in range(2)]
    for patches in (4, 7):
        expected = whole(patches)
        for rank, part in enumerate(parts):
            assert torch.equal(part(patches), expected[rank::2])
    assert not torch.equal(drop_noise(3, 6, 6)(4), drop_noise(3, 5, 6)(4))
