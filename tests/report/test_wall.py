from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from patchranking.evaluation.examples import Example, View
from patchranking.report.pictures import heat_map
from patchranking.report.wall import wall

NOISE = np.random.default_rng(0)
PHOTO = Image.fromarray(NOISE.integers(0, 255, (8, 8, 3), np.uint8)).resize((224, 224))
IMPORTANCE = NOISE.normal(size=(2, 3))
LOW, HIGH = View(np.array([[0, 1, 2], [2, 0, 1]]), 2, 0.9126, "dog"), View(np.full((2, 3), 2), 2, 0.99, "cat")


def decoded(source: str) -> np.ndarray:
    start, data = source.split(",")
    assert start == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), int)


@pytest.fixture
def shown():
    views = {"random": {0.5: HIGH}, "patchranking": {0.8: HIGH, 0.4: LOW}}
    return wall(
        [
            Example(PHOTO, "cat", IMPORTANCE, views, "7.png", "cat", True),
            Example(PHOTO, "bird", None, {"random": {0.5: HIGH}}, "bird", "cat"),
        ],
        0.45,
    )


def test_it_starts_at_the_nearest_rate_and_parts_the_worst_from_the_others(shown) -> None:
    assert shown["rates"] == [("0.4", "40\u00a0%"), ("0.5", "50\u00a0%"), ("0.8", "80\u00a0%")]
    assert shown["place"] in (0, 1)
    assert (shown["later"], shown["golden"], shown["classes"]) == (True, True, True)
    assert [card["caption"] for card in shown["worst"]] == ["cat"]
    assert [card["caption"] for card in shown["first"]] == ["bird"]


def test_a_card_has_photo_ranking_key_and_what_the_dense_model_says(shown) -> None:
    (card,), (other,) = shown["worst"], shown["first"]
    for source, drawn in ((card["photo"], PHOTO), (card["golden"], heat_map(PHOTO, IMPORTANCE, 224))):
        assert np.abs(decoded(source) - np.asarray(drawn, int)).mean() < 5
    assert (card["key"], card["prediction"], card["right"]) == ("7.png", "cat", True)
    assert (other["key"], other["right"], other["golden"]) == ("", False, None)


def test_a_mask_tells_what_each_stage_drops_and_what_is_then_said(shown) -> None:
    ours, random = shown["worst"][0]["masks"]
    assert (ours["name"], ours["rows"], ours["columns"], random["name"]) == ("patchranking", 2, 3, "random")
    assert ours["views"] == {
        "0.8": {"patches": "kkkkkk", "cosine": "0.990", "prediction": "cat", "changed": False},
        "0.4": {"patches": "abkkab", "cosine": "0.913", "prediction": "dog", "changed": True},
    }
    assert [(patch["x"], patch["y"], patch["kind"]) for patch in ours["patches"]] == [
        (0, 0, "a"),
        (1, 0, "b"),
        (2, 0, "k"),
        (0, 1, "k"),
        (1, 1, "a"),
        (2, 1, "b"),
    ]


def test_without_images_there_is_no_wall() -> None:
    assert wall([], 0.6) is None
    assert wall([Example(PHOTO, "a")], 0.6)["rates"] == []
