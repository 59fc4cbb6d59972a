from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchranking.errors import MissingExtraError
from patchranking.evaluation.examples import Example
from patchranking.report.figures import MEASURES, accuracy_against_cost, examples_picture

pytest.importorskip("matplotlib")


def row(method: str, rate: float, **changes: Any) -> dict[str, Any]:
    base = {"dataset": "demo", "method": method, "keep_rate": rate, "n_images": 100, "seed": 0, "tuned": "none"}
    measured = {"top1": 90 * rate, "top1_dense": 90.0, "feature_cosine": rate, "gmacs": rate, "gmacs_dense": 1.0}
    return {**base, **measured, "oracle": False, "schedule": {"3": rate}, **changes}


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter() if node.tag.endswith("text")]


def test_legend_names_every_method_and_marks_oracles() -> None:
    rows = [row("patchranking", 0.6), row("brand-new", 0.6), row("golden", 0.6, oracle=True, n_images=20)]
    rows.append(row("patchranking", 0.6, tuned="text"))
    shown = texts(accuracy_against_cost(rows, "demo"))
    assert {"patchranking", "patchranking + text tokens", "brand-new", "golden (oracle), 20 images", "dense"} <= {
        *shown
    }


def test_oracle_is_dashed_and_others_are_not() -> None:
    assert "stroke-dasharray" in accuracy_against_cost([row("golden", 0.6, oracle=True), row("golden", 0.5)], "demo")
    assert "stroke-dasharray" not in accuracy_against_cost([row("random", 0.6), row("random", 0.5)], "demo")


def test_only_the_asked_data_set_is_drawn() -> None:
    rows = [row("random", 0.6), row("evit", 0.6, dataset="photos")]
    assert "evit" not in texts(accuracy_against_cost(rows, "demo"))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_without_values_gives_no_chart(measure: str) -> None:
    rows = [row("dense", 1.0), row("random", 0.6, **{measure: None})]
    assert accuracy_against_cost(rows, "demo", measure) == ""


def test_missing_single_values_are_skipped() -> None:
    rows = [row("random", 0.6), row("random", 0.5, top1=None), row("evit", 0.5, gmacs=None)]
    shown = texts(accuracy_against_cost(rows, "demo"))
    assert "60%" in shown
    assert "50%" not in shown
    assert "evit" not in shown


def test_seeds_become_one_point_with_a_band() -> None:
    one = accuracy_against_cost([row("random", 0.6), row("random", 0.5)], "demo")
    rows = [row("random", rate, seed=seed, top1=80.0 + seed) for rate in (0.6, 0.5) for seed in (0, 1)]
    two = accuracy_against_cost(rows, "demo")
    assert two.count("<use") == one.count("<use") + 1
    assert "fill-opacity: 0.15" in two
    assert "fill-opacity: 0.15" not in one


def test_chart_is_one_plain_element_that_escapes_names() -> None:
    svg = accuracy_against_cost([row("random", 0.6, dataset='<b>$x"&')], '<b>$x"&')
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert "<b>" not in svg
    assert any('<b>$x"&' in text for text in texts(svg))
    assert svg.count("http") == svg.count("http://www.w3.org/")


def test_chart_is_deterministic() -> None:
    rows = [row("random", 0.6), row("patchranking", 0.6)]
    assert accuracy_against_cost(rows, "demo") == accuracy_against_cost(rows, "demo")


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"patchranking\[report\]"):
        accuracy_against_cost([row("random", 0.6)], "demo")
    with pytest.raises(MissingExtraError, match=r"patchranking\[report\]"):
        examples_picture([])


def test_the_picture_has_a_row_an_image_and_a_column_a_view() -> None:
    places = np.arange(16).reshape(4, 4)
    red = Image.new("RGB", (32, 32), (250, 0, 0))
    shown = [Example(red, "with", np.arange(16.0).reshape(4, 4), {"random": places}), Example(red, "without")]
    picture = examples_picture(shown, [0.5], side=42)
    assert picture.size == (3 * (42 + 4) + 4, 10 + 2 * (42 + 4))
    assert picture.getpixel((6, 12)) == (250, 0, 0)
    assert picture.getpixel((4 + 2 * 46 + 2, 12)) == (250, 0, 0)
    assert picture.getpixel((4 + 46 + 2, 10 + 46 + 2)) == (255, 255, 255)
    assert examples_picture(shown, [], side=42).width == 2 * 46 + 4


def test_cost_is_measured_time_where_it_was_measured() -> None:
    rows = [row("random", rate, images_per_second=100 / rate, images_per_second_dense=90) for rate in (0.6, 0.5)]
    svg = accuracy_against_cost(rows, "demo", "top1", "milliseconds")
    assert "Milliseconds per image" in svg
    assert accuracy_against_cost([row("random", 0.6)], "demo", "top1", "milliseconds") == ""


def test_recall_and_index_overlap_have_charts() -> None:
    rows = [row("dense", 1.0, recall_at_1=40.0), row("random", 0.6, recall_at_1=30.0, index_overlap_at_10=0.8)]
    assert "Recall@1" in accuracy_against_cost(rows, "demo", "recall_at_1")
    assert "same 10 neighbours" in accuracy_against_cost(rows, "demo", "index_overlap_at_10")
