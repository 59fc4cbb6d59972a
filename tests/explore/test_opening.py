from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from patchranking.errors import UserError
from patchranking.explore.opening import opened


def stored(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"no picture at all", "cannot identify the format"),
        (stored(Image.effect_noise((64, 64), 9))[:900], "OSError"),
        (stored(Image.new("RGB", (4000, 1))), "one side is over 500 times the other"),
    ],
)
def test_a_bad_picture_is_one_sentence(content, words):
    with pytest.raises(UserError, match=r"^This picture cannot be used: .*[^.]\.$") as caught:
        opened(content, (32, 32))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (stored(Image.new("RGB", (1, 1))), "1 x 1 pixels, fewer than the 48 x 32 that the model takes"),
        (stored(Image.new("CMYK", (64, 64)), "JPEG"), "from CMYK into RGB"),
        (stored(Image.fromarray(np.full((64, 64), 40000, np.uint16))), "more than 8 bits"),
        (
            stored(
                Image.new("RGB", (64, 64)),
                "GIF",
                save_all=True,
                append_images=[Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")],
            ),
            "holds 3 pictures",
        ),
    ],
)
def test_an_odd_picture_is_opened_and_says_so(content, words):
    picture, notes = opened(content, (32, 48))
    assert picture.mode == "RGB"
    assert len(notes) == 1
    assert words in notes[0]


def test_a_usual_picture_needs_no_words():
    picture, notes = opened(stored(Image.new("RGB", (64, 64), "red")), (32, 32))
    assert (picture.size, notes) == ((64, 64), [])
