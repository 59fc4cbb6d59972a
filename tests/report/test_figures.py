from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from patchranking.errors import MissingExtraError
from patchranking.evaluation.examples import Example
from patchranking.report.figures import MEASURES, accuracy_against_cost, examples_picture
from patchranking.report.pictures import heat_map, kept_view, photo
from patchranking.report.styles import style

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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is drawn: label -> (x, y, look); ``bands`` and ``rates`` beside them."""
    from matplotlib.axes import Axes

    found: dict[str, Any] = {"bands": [], "rates": None}
    plot, fill, ticks = Axes.plot, Axes.fill_between, Axes.set_xticks

    def spied_plot(self: Axes, x: Any, y: Any, **look: Any) -> Any:
        found[look["label"]] = ([float(value) for value in x], [float(value) for value in y], look)
        return plot(self, x, y, **look)

    def spied_fill(self: Axes, x: Any, low: Any, high: Any, **look: Any) -> Any:
        found["bands"].append((list(x), list(low), list(high), look["color"]))
        return fill(self, x, low, high, **look)

    def spied_ticks(self: Axes, places: Any, labels: Any = None, **look: Any) -> Any:
        if labels is not None:
            found["rates"] = (list(places), list(labels))
        return ticks(self, places, labels, **look)

    monkeypatch.setattr(Axes, "plot", spied_plot)
    monkeypatch.setattr(Axes, "fill_between", spied_fill)
    monkeypatch.setattr(Axes, "set_xticks", spied_ticks)
    return found


def labels(drawn: dict[str, Any]) -> list[str]:
    return [name for name in drawn if name not in ("bands", "rates")]


def test_points_go_from_cheap_to_dear_and_the_dense_model_stands_apart(drawn: dict[str, Any]) -> None:
    rows = [row("random", rate, top1=90 - 10 / rate) for rate in (0.8, 0.4, 0.6)]
    accuracy_against_cost([row("dense", 1.0, top1=90.0), *rows], "demo")
    assert drawn["random"][:2] == ([0.4, 0.6, 0.8], pytest.approx([65, 90 - 10 / 0.6, 77.5]))
    assert drawn["dense"][:2] == ([1.0], [90.0])
    assert drawn["rates"] == ([0.4, 0.6, 0.8], ["40%", "60%", "80%"])
    assert labels(drawn) == ["random", "dense"]


@pytest.mark.parametrize(
    ("measure", "factor", "dense"),
    [
        ("top1", 1, 90.0),
        ("recall_at_1", 1, 44.0),
        ("feature_cosine", 1, 1.0),
        ("index_overlap_at_10", 100, 100.0),
        ("object_patches_kept", 100, 100.0),
    ],
)
def test_shares_become_percent_and_percentages_stay(
    drawn: dict[str, Any], measure: str, factor: float, dense: float
) -> None:
    rows = [row("dense", 1.0, **{measure: 44.0}), row("evit", 0.6, **{measure: 0.25})]
    accuracy_against_cost(rows, "demo", measure)
    assert drawn["evit"][1] == pytest.approx([0.25 * factor])
    assert drawn["dense"][1] == [dense]


def test_milliseconds_are_those_of_one_image(drawn: dict[str, Any]) -> None:
    rows = [row("random", 0.5, images_per_second=200.0, images_per_second_dense=125.0)]
    accuracy_against_cost(rows, "demo", "top1", "milliseconds")
    assert drawn["random"][0] == [5.0]
    assert drawn["dense"][0] == [8.0]


def test_every_method_has_its_look_and_ours_stands_out(drawn: dict[str, Any]) -> None:
    rows = [row(name, 0.6, oracle=name == "golden") for name in ("golden", "evit", "patchranking", "dense")]
    rows.append(row("patchranking", 0.6, tuned="both"))
    accuracy_against_cost(rows, "demo")
    for name, label in (("golden", "golden (oracle)"), ("evit", "evit"), ("patchranking", "patchranking")):
        look = drawn[label][2]
        assert (look["color"], look["marker"]) == (style(name).colour, style(name).marker)
    lines = {label: drawn[label][2]["linestyle"] for label in labels(drawn)}
    assert lines == {
        "patchranking": "-",
        "patchranking + both tokens": (0, (1, 1.2)),
        "evit": "-",
        "golden (oracle)": (0, (4, 2.2)),
        "dense": "none",
    }
    assert drawn["patchranking"][2]["linewidth"] > drawn["evit"][2]["linewidth"]
    assert drawn["dense"][2]["marker"] == style("dense").marker


def test_lines_come_in_the_order_of_the_report(drawn: dict[str, Any]) -> None:
    names = ["golden", "zebra", "random", "patchranking", "tome", "low-res"]
    rows = [row(name, 0.6, oracle=name == "golden") for name in names]
    accuracy_against_cost([row("patchranking", 0.6, tuned="text"), *rows], "demo")
    ours = ["patchranking", "patchranking + text tokens"]
    assert labels(drawn) == [*ours, "tome", "low-res", "random", "zebra", "golden (oracle)", "dense"]


def test_the_dense_model_with_tokens_is_a_point_of_the_tuned_line(drawn: dict[str, Any]) -> None:
    rows = [row("dense", 1.0, tuned="text", top1=95.0, gmacs=1.1), row("patchranking", 0.6, tuned="text", top1=93.0)]
    accuracy_against_cost(rows, "demo")
    assert drawn["patchranking + text tokens"][:2] == ([0.6, 1.1], [93.0, 95.0])
    assert drawn["rates"] == ([0.6, 1.1], ["60%", "100%"])


def test_seeds_are_averaged_and_span_the_band_but_schedules_stay_apart(drawn: dict[str, Any]) -> None:
    rows = [row("random", 0.6, seed=seed, top1=80.0 + seed, gmacs=0.5 + seed / 10) for seed in (0, 1, 5)]
    rows += [row("random", 0.5, top1=70.0, gmacs=0.4), row("random", 0.5, top1=60.0, gmacs=0.3, schedule={"1": 0.5})]
    accuracy_against_cost(rows, "demo")
    assert drawn["random"][:2] == (pytest.approx([0.3, 0.4, 0.7]), pytest.approx([60, 70, 82]))
    ((_, low, high, colour),) = drawn["bands"]
    assert (low, high, colour) == ([60, 70, 80], [60, 70, 85], style("random").colour)


def test_fewer_images_make_a_line_of_their_own_and_the_dense_model_is_that_of_the_most(drawn: dict[str, Any]) -> None:
    rows = [
        row("golden", 0.6, oracle=True, n_images=20, top1_dense=10.0, gmacs_dense=9.0),
        row("random", 0.6, n_images=1500),
        row("random", 0.5, n_images=None),
        row("random", 0.4, n_images=1000),
    ]
    accuracy_against_cost(rows, "demo")
    assert labels(drawn) == ["random", "random, 1,000 images", "golden (oracle), 20 images", "dense"]
    assert drawn["random"][0] == [0.5, 0.6]
    assert drawn["dense"][:2] == ([1.0], [90.0])
    assert drawn["rates"] == ([0.5, 0.6], ["50%", "60%"])


def test_rates_are_marked_by_a_method_to_deploy_and_by_an_oracle_only_alone(drawn: dict[str, Any]) -> None:
    rows = [row("another", 0.5, oracle=True), row("golden", 0.7, oracle=True), row("zebra", 0.6)]
    assert "patches kept by zebra" in texts(accuracy_against_cost(rows, "demo"))
    assert drawn["rates"] == ([0.6], ["60%"])
    assert "patches kept by golden" in texts(accuracy_against_cost([row("golden", 0.7, oracle=True)], "demo"))


def test_the_marks_of_the_rates_stand_above_their_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    pairs, twiny = [], Axes.twiny

    def spied(self: Axes) -> Axes:
        pairs.append((self, twiny(self)))
        return pairs[-1][1]

    monkeypatch.setattr(Axes, "twiny", spied)
    accuracy_against_cost([row("random", 0.9), row("random", 0.7), row("evit", 0.2)], "demo")
    ((below, above),) = pairs
    assert above.get_xlim() == below.get_xlim()
    assert above.get_xlim()[0] < 0.2 < 1 < above.get_xlim()[1]


def test_a_row_with_neither_rate_nor_cost_is_left_out(drawn: dict[str, Any]) -> None:
    rows = [row("random", 0.6), row("evit", 0.6, keep_rate=None), row("tome", 0.6, gmacs=None)]
    accuracy_against_cost(rows, "demo")
    assert labels(drawn) == ["random", "dense"]


def test_the_picture_shows_the_ranking_and_what_is_kept_at_every_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.arange(16).reshape(4, 4)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    item = Example(image, "a", places.astype(float), {"random": places.T, "patchranking": places})
    heads, text = [], ImageDraw.ImageDraw.text

    def spied(self: ImageDraw.ImageDraw, place: Any, words: str, *look: Any) -> None:
        heads.append(words)
        text(self, place, words, *look)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spied)
    picture = examples_picture([item], [0.75, 0.25], side=42)
    columns = [(name, f"{rate}% kept") for name in ("patchranking", "random") for rate in (75, 25)]
    assert heads == [part for head in [("image", ""), ("golden", "ranking"), *columns] for part in head]
    shown = [
        photo(image, 42),
        heat_map(image, places.astype(float), 42),
        *(kept_view(image, item.kept(name, rate), 42) for name in ("patchranking", "random") for rate in (0.75, 0.25)),
    ]
    assert picture.width == len(shown) * 46 + 4
    for column, expected in enumerate(shown):
        left = 4 + column * 46
        assert picture.crop((left, 10, left + 42, 52)).tobytes() == expected.tobytes()
