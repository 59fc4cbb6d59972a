from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchranking.data import ImageData, read_batches
from patchranking.data.images import UnreadableImageError


class Numbered(ImageData):
    """Pictures whose red level is their index; some are damaged."""

    def __init__(self, length, damaged=()):
        self.name, self.split, self.labels, self.class_names = "numbered", "all", None, []
        self.keys = [f"image {index}" for index in range(length)]
        self.damaged = set(damaged)

    def image(self, index):
        if index in self.damaged:
            raise UnreadableImageError(f"damaged {index}")
        return Image.new("RGB", (2, 3), (index, 0, 0))


def pixels_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


@given(
    st.integers(0, 30).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1))))),
    st.integers(1, 9),
)
def test_every_image_comes_in_order_or_is_skipped_with_its_reason(length_and_damaged, batch_size):
    length, damaged = length_and_damaged
    damaged = {index for index in damaged if index < length}
    skipped = {}
    batches = list(read_batches(Numbered(length, damaged), pixels_of, batch_size, skipped))
    indices = [index for found, _ in batches for index in found]
    assert indices == [index for index in range(length) if index not in damaged]
    assert skipped == {f"image {index}": f"damaged {index}" for index in damaged}
    assert length == len(indices) + len(skipped)
    assert all(len(found) == batch_size for found, _ in batches[:-1])
    assert all(0 < len(found) <= batch_size for found, _ in batches)
    for found, pixels in batches:
        assert pixels.shape == (len(found), 3, 3, 2)
        assert pixels[:, 0, 0, 0].tolist() == found


def test_reads_only_the_images_asked_for():
    skipped = {}
    batches = list(read_batches(Numbered(9, [1, 5]), pixels_of, 2, skipped, [7, 5, 3]))
    assert [found for found, _ in batches] == [[7, 3]]
    assert skipped == {"image 5": "damaged 5"}


@pytest.mark.parametrize("error", [ValueError("ambiguous\nchannels"), MemoryError(), RuntimeError("x" * 999)])
def test_an_image_that_cannot_be_preprocessed_is_skipped(error):
    def preprocess(image):
        if image.getpixel((0, 0))[0] == 1:
            raise error
        return pixels_of(image)

    skipped = {}
    ((found, _),) = read_batches(Numbered(3), preprocess, 8, skipped)
    assert found == [0, 2]
    reason = skipped["image 1"]
    assert reason.startswith("cannot be preprocessed, 2 x 3 pixels: ")
    assert type(error).__name__ in reason
    assert "\n" not in reason
    assert len(reason) < 260


def test_a_mistake_in_the_data_is_no_reason_to_skip():
    class Broken(Numbered):
        def image(self, index):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(read_batches(Broken(1), pixels_of, 1, {}))


def test_interrupting_stops():
    def preprocess(image):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(read_batches(Numbered(1), preprocess, 1, {}))


def test_progress_is_silent_unless_named(capsys):
    list(read_batches(Numbered(2), pixels_of, 2, {}))
    assert capsys.readouterr().err == ""
    list(read_batches(Numbered(2), pixels_of, 2, {}, progress="reading"))
    assert "reading" in capsys.readouterr().err
