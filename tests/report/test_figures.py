from __future__ import annotations

import itertools
import re
import sys
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from patchranking.errors import MissingExtraError
from patchranking.report.figures import MEASURES, accuracy_against_cost
from patchranking.report.styles import style

pytest.importorskip("matplotlib")


def row(method: str, rate: float, **changes: Any) -> dict[str, Any]:
    base = {"dataset": "demo", "method": method, "keep_rate": rate, "n_images": 100, "seed": 0, "tuned": "none"}
    measured = {"top1": 90 * rate, "top1_dense": 90.0, "feature_cosine": rate, "gmacs": rate, "gmacs_dense": 1.0}
    return {**base, **measured, "oracle": False, "schedule": {"3": rate}, **changes}


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter() if node.tag.endswith("text")]


class Chart:
    """A chart read back: where its marks stand on its own axes."""

    def __init__(self, svg: str) -> None:
        self.root = ET.fromstring(svg)
        self.marks = [
            (node.get("style", ""), node)
            for group in self.root.iter()
            for node in group
            if group.get("clip-path") and node.tag.endswith("use")
        ]
        across, up, heights = [], [], set()
        for node in self.root.iter():
            css, number = node.get("style", ""), re.fullmatch(r"[\d.]+", node.text or "")
            if number and "middle" in css:
                across.append((float(node.get("x", "nan")), float(number[0])))
            elif number and "end" in css:
                up.append(float(number[0]))
            elif "--line" in css and node.get("clip-path"):
                _, _, y, _, _, end = node.get("d", "").split()
                heights |= {float(y)} if y == end else set()
        self.x = np.polyfit(*zip(*across, strict=True), 1)
        self.y = np.polyfit(sorted(heights, reverse=True), sorted(up), 1)

    def cost(self, node: ET.Element) -> float:
        return float(np.polyval(self.x, float(node.get("x", "nan"))))

    def points(self, method: str) -> np.ndarray:
        """Cost and value of the points of a method."""
        fill = f"fill: {'var(--ink' if method == 'dense' else style(method).colour}"
        marks = [node for css, node in self.marks if fill in css and "fill-opacity" not in css]
        return np.array([(self.cost(node), np.polyval(self.y, float(node.get("y", "nan")))) for node in marks])

    def cost_of(self, words: str) -> float:
        """The cost above which a text stands."""
        (node,) = [node for node in self.root.iter() if node.text == words]
        return self.cost(node)


def near(*points: tuple[float, float]) -> Any:
    return pytest.approx(np.array(points), rel=1e-3)


VALUES = {
    "top1": (61.0, 74.0, 61.0, 74.0, 88.0),
    "recall_at_1": (31.0, 42.0, 31.0, 42.0, 57.0),
    "feature_cosine": (0.81, 0.93, 0.81, 0.93, 1.0),
    "index_overlap_at_10": (0.52, 0.77, 52.0, 77.0, 100.0),
    "object_patches_kept": (0.63, 0.86, 63.0, 86.0, 100.0),
}


@pytest.mark.parametrize("cost", ["gmacs", "macs_share", "milliseconds"])
@pytest.mark.parametrize("measure", MEASURES)
def test_points_stand_at_their_cost_and_value(measure: str, cost: str) -> None:
    low, high, low_drawn, high_drawn, dense = VALUES[measure]
    costs = {
        0.6: {"gmacs": 3.1, "macs_share": 0.74, "images_per_second": 250.0},
        0.3: {"gmacs": 2.3, "macs_share": 0.55, "images_per_second": 400.0},
        1.0: {"gmacs": 4.2, "macs_share": 1.0, "images_per_second": 160.0},
    }
    whole = {"top1_dense": 88.0, "gmacs_dense": 4.2, "images_per_second_dense": 160.0, "n_images": 50}
    rows = [
        row("dense", 1.0, **{measure: dense}, **costs[1.0], **whole),
        row("random", 0.6, **{measure: high}, **costs[0.6], **whole),
        row("random", 0.3, **{measure: low}, **costs[0.3], **whole),
    ]
    if measure in ("index_overlap_at_10", "object_patches_kept", "feature_cosine"):
        rows[0][measure] = 1.0
    svg = accuracy_against_cost(rows, "demo", measure, cost)
    chart, words = Chart(svg), texts(svg)
    drawn = {"gmacs": (2.3, 3.1, 4.2), "macs_share": (55.0, 74.0, 100.0), "milliseconds": (2.5, 4.0, 6.25)}
    cheap, dear, full = drawn[cost]
    assert chart.points("random") == near((cheap, low_drawn), (dear, high_drawn))
    assert chart.points("dense") == near((full, dense))
    assert chart.cost_of("30%") == pytest.approx(cheap, rel=1e-3)
    assert chart.cost_of("60%") == pytest.approx(dear, rel=1e-3)
    assert f"{MEASURES[measure]} · demo" in words
    unit = {
        "gmacs": "GMACs of the image tower per image",
        "macs_share": "Share of the dense MACs, counted (%)",
        "milliseconds": "Milliseconds per image, measured",
    }[cost]
    assert {unit, "patches kept by random"} <= {*words}


def test_rows_of_one_rate_and_other_schedules_are_points_of_their_own() -> None:
    rows = [
        row("random", 0.6, schedule={"3": 0.6}, gmacs=0.6, top1=70.0),
        row("random", 0.6, schedule={"2": 0.8, "4": 0.6}, gmacs=0.7, top1=75.0),
    ]
    assert Chart(accuracy_against_cost(rows, "demo")).points("random") == near((0.6, 70), (0.7, 75))


def test_the_dense_mark_is_of_the_rows_with_the_most_images() -> None:
    few = {"n_images": 20, "top1_dense": 70.0, "gmacs_dense": 2.0}
    rows = [
        row("golden", 0.5, oracle=True, top1=60.0, **few),
        row("random", 0.6),
        row("golden", 0.4, oracle=True, **few),
    ]
    assert Chart(accuracy_against_cost(rows, "demo")).points("dense") == near((1.0, 90.0))
    retrieval = [row("random", 0.6, recall_at_1=30.0), row("dense", 1.0, recall_at_1=40.0)]
    assert Chart(accuracy_against_cost(retrieval, "demo", "recall_at_1")).points("dense") == near((1.0, 40.0))


def test_tuned_tokens_are_lines_of_their_own_and_start_from_the_unpruned_model() -> None:
    rows = [row("dense", 1.0), row("dense", 1.0, tuned="text", top1=95.0, gmacs=1.0)]
    rows += [row("patchranking", 0.6, tuned="text", top1=80.0), row("patchranking", 0.6, top1=70.0)]
    svg = accuracy_against_cost(rows, "demo")
    assert Chart(svg).points("patchranking") == near((0.6, 70), (0.6, 80), (1, 95))
    assert [text for text in texts(svg) if "patchranking" in text] == [
        "patches kept by patchranking",
        "patchranking",
        "patchranking + text tokens",
    ]
    dashes = re.findall(r"stroke-dasharray: ([^;]+)", svg)
    oracle = accuracy_against_cost([row("golden", 0.6, oracle=True), row("golden", 0.5, oracle=True)], "demo")
    assert (len(dashes), len({*dashes})) == (2, 1)
    relative = [
        [float(part) for part in dash.split(",")] for dash in (dashes[0], *re.findall(r"array: ([^;]+)", oracle))
    ]
    assert relative[0][0] < relative[0][1]
    assert relative[1][0] > relative[1][1]


def test_the_legend_has_the_order_of_the_methods() -> None:
    names = ["golden", "brand-new", "random", "patchranking", "evit"]
    svg = accuracy_against_cost([row(name, 0.6, oracle=name == "golden") for name in names], "demo")
    shown = [text for text in texts(svg) if text.partition(" ")[0] in (*names, "dense")]
    assert shown == ["patchranking", "evit", "random", "brand-new", "golden (oracle)", "dense"]


def test_keep_rates_are_those_of_the_first_method_that_is_no_oracle() -> None:
    rows = [row("golden", 0.5, oracle=True), row("random", 0.6), row("evit", 0.7)]
    assert "patches kept by evit" in texts(accuracy_against_cost(rows, "demo"))
    assert "patches kept by golden" in texts(accuracy_against_cost(rows[:1], "demo"))


def test_legend_names_every_method_and_marks_oracles() -> None:
    rows = [row("patchranking", 0.6), row("brand-new", 0.6), row("golden", 0.6, oracle=True)]
    rows.append(row("patchranking", 0.6, tuned="text"))
    shown = texts(accuracy_against_cost(rows, "demo"))
    assert {"patchranking", "patchranking + text tokens", "brand-new", "golden (oracle)", "dense"} <= {*shown}


def test_an_oracle_on_fewer_images_is_not_drawn() -> None:
    rows = [row("patchranking", 0.6), row("golden", 0.6, oracle=True, n_images=99), row("random", 0.6, n_images=99)]
    shown = texts(accuracy_against_cost(rows, "demo"))
    assert "random, 99 images" in shown
    assert not [text for text in shown if "golden" in text]


def test_tick_labels_do_not_touch() -> None:
    rates = [0.95, 0.945, 0.94, 0.9, 0.7, 0.5, 0.3, 0.29]
    chart = Chart(svg := accuracy_against_cost([row("random", rate) for rate in rates], "demo"))
    places = {"upper": [], "lower": []}
    for node in chart.root.iter():
        if node.text and re.fullmatch(r"[\d.]+%?", node.text) and "middle" in node.get("style", ""):
            places["upper" if "%" in node.text else "lower"].append((float(node.get("x")), node.text))
    for found in places.values():
        ends = sorted((x - 3.2 * len(text), x + 3.2 * len(text)) for x, text in found)
        assert all(start > end for (_, end), (start, _) in itertools.pairwise(ends))
    assert {"29%", "50%", "70%"} <= {*texts(svg)}
    assert 4 <= len(places["lower"]) <= 7


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
    seeds = enumerate((80.0, 83.0, 80.0, 81.0, 81.0, 81.0))
    rows = [row("random", rate, seed=seed, top1=top1) for seed, top1 in seeds for rate in (0.6, 0.5)]
    two = accuracy_against_cost(rows, "demo")
    assert Chart(two).points("random") == near((0.5, 81.0), (0.6, 81.0))
    assert "fill-opacity: 0.15" not in one
    (band,) = [path for path in re.findall(r'<path id="\w+" d="([^"]+)"/>', two) if path.count("L") > 4]
    heights = np.polyval(Chart(two).y, [288 + float(place) for place in re.findall(r"[ML] \S+ (\S+)", band)])
    assert (heights.min(), heights.max()) == pytest.approx((80.0, 83.0), rel=1e-3)


def test_chart_is_one_plain_element_that_escapes_names() -> None:
    svg = accuracy_against_cost([row("random", 0.6, dataset='<b>$x"&')], '<b>$x"&')
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert "<b>" not in svg
    assert any('<b>$x"&' in text for text in texts(svg))
    muted = [node for node in ET.fromstring(svg).iter() if "--muted" in node.get("style", "")]
    assert len(muted) > 5
    assert all(node.tag.endswith("text") for node in muted)
    assert "#0" not in re.sub(r"url\(#\w+\)|\"#\w+\"", "", svg)
    assert svg.count("http") == svg.count("http://www.w3.org/")


def test_chart_is_deterministic() -> None:
    rows = [row("random", 0.6), row("patchranking", 0.6)]
    assert accuracy_against_cost(rows, "demo") == accuracy_against_cost(rows, "demo")


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"patchranking\[report\]"):
        accuracy_against_cost([row("random", 0.6)], "demo")


def test_without_measured_time_there_is_no_chart_of_it() -> None:
    assert accuracy_against_cost([row("random", 0.6)], "demo", "top1", "milliseconds") == ""


def test_a_long_title_is_set_smaller() -> None:
    sizes = []
    for name in ("demo", "a-data-set-of-a-long-name"):
        svg = accuracy_against_cost([row("random", 0.6, dataset=name)], name, "top1")
        sizes.append(float(re.findall(r"font-weight: 700; font-size: ([\d.]+)px", svg)[0]))
    assert sizes[0] == 11.5 > sizes[1] > 9
