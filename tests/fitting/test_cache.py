from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.fitting import cache
from patchranking.fitting.cache import FileRows, cache_tokens
from patchranking.predictor.targets import FEATURE, HandedOn


@pytest.fixture
def pictures(tmp_path):
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    root.mkdir()
    for index in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(root / f"{index}.png")
    (root / "broken.png").write_bytes(b"no picture")
    return load_data(str(root))


def test_without_mirror_images_there_is_one_view_and_no_features_unless_asked(tiny, pictures, tmp_path):
    used, skipped, tokens, features = cache_tokens(tiny, pictures, [4, 1], 3, None, tmp_path)
    assert (used, skipped, features, tokens.shape) == ([4, 1], {}, None, (1, 2, 17, 32))
    for row, image in enumerate(used):
        pixels = tiny.preprocess(pictures.image(image))[None]
        torch.testing.assert_close(tokens[0, torch.tensor([row])], tiny.tower.embed(pixels, 3).half())


def test_rows_of_a_file_are_those_of_the_array(tmp_path):
    array = np.random.default_rng(0).random((7, 2, 3, 4)).astype(np.float16)
    np.save(tmp_path / "rows.npy", array)
    rows = FileRows(tmp_path / "rows.npy", torch.arange(5))
    some = rows.of([4, 0, 3])
    assert (rows.shape, some.shape) == ((2, 5, 3, 4), (2, 3, 3, 4))
    assert np.array_equal(rows[1, torch.tensor([3, 1])].numpy(), array[[3, 1], 1])
    assert np.array_equal(some[0, torch.tensor([2, 0])].numpy(), array[[3, 4], 0])


def test_it_goes_on_where_it_was_killed_and_reads_no_image_twice(tiny, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_IMAGES_PER_BATCH", 2)
    monkeypatch.setattr(cache, "_SECONDS_PER_NOTE", -1)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    used, skipped, *whole = cache_tokens(tiny, pictures, None, 2, FEATURE, tmp_path / "whole", mirrored=True)
    assert list(skipped) == ["broken.png"]
    read, note = [], cache._note

    def killed(*args):
        note(*args)
        raise KeyboardInterrupt

    image = pictures.image
    monkeypatch.setattr(pictures, "image", lambda index: read.append(index) or image(index))
    monkeypatch.setattr(cache, "_note", killed)
    with pytest.raises(KeyboardInterrupt):
        cache_tokens(tiny, pictures, None, 2, FEATURE, tmp_path / "parts", mirrored=True)
    monkeypatch.setattr(cache, "_note", note)
    again, skipped_again, *parts = cache_tokens(tiny, pictures, None, 2, FEATURE, tmp_path / "parts", mirrored=True)
    assert (again, skipped_again) == (used, skipped)
    assert sorted(read) == list(range(len(pictures)))
    for one, other in zip(whole, parts, strict=True):
        for view in range(2):
            everything = torch.arange(len(used))
            assert torch.equal(one[view, everything], other[view, everything])


def test_a_disk_without_room_is_said_before_the_work(tiny, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30 + 100})())
    with pytest.raises(UserError, match=r"The tokens of 7 images take .* fit to fewer images"):
        cache_tokens(tiny, pictures, None, 2, FEATURE, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_a_disk_that_fills_up_while_it_writes_is_an_error_that_can_be_told(tiny, pictures, tmp_path, monkeypatch):
    """The files are as long as they will be from the start, so the room is taken when rows are written."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = cache.open_memmap

    def then_full(*arguments):
        written(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))

    monkeypatch.setattr(cache, "open_memmap", then_full)
    try:
        with pytest.raises(OSError, match="File too large"):
            cache_tokens(tiny, pictures, None, 2, None, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_tokens_handed_on_are_cached_in_half_precision_and_leave_the_rest_as_it_is(tiny, pictures, tmp_path):
    used, _, tokens, dense = cache_tokens(tiny, pictures, None, 2, HandedOn(4), tmp_path, mirrored=True)
    assert dense.shape == (2, 6, 16, 32)
    for view in range(2):
        pixels = torch.stack([tiny.preprocess(pictures.image(index)) for index in used])
        pixels = pixels.flip(-1) if view else pixels
        found = dense[view, torch.arange(6)]
        assert found.dtype == torch.float16
        state = torch.nn.functional.normalize(tiny.tower.embed(pixels, 4)[:, 1:], dim=-1)
        torch.testing.assert_close(found.float(), state, rtol=0, atol=5e-4)
        torch.testing.assert_close(tokens[view, torch.arange(6)], tiny.tower.embed(pixels, 2).half())
