from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchranking.errors import MissingExtraError
from patchranking.evaluation.examples import Example
from patchranking.report.page import write_report
from patchranking.report.styles import style

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


def row(method: str, rate: float, **changes: Any) -> dict[str, Any]:
    base = {"model": "demo", "dataset": "demo", "split": "test", "n_images": 2000, "seed": 0, "method": method}
    setting = {"keep_rate": rate, "kept_patches": 38, "schedule": {"3": rate}, "tuned": "none", "oracle": False}
    measured = {"top1": 96.0, "top1_dense": 96.2, "feature_cosine": 0.99, "gmacs": 0.31, "gmacs_dense": 0.41}
    return {**base, **setting, **measured, "images_per_second": 990.0, "images_per_second_dense": 800.0, **changes}


DENSE = row("dense", 1.0, top1=96.2, feature_cosine=1.0, gmacs=0.41, images_per_second=800.0)
GOLDEN = row("golden", 0.6, oracle=True, n_images=200, same_images={"patchranking": {"top1": 91.7}})


def page(tmp_path: Path, rows: list[dict[str, Any]], examples: list[Example] | None = None, **environment: Any) -> str:
    results = {"environment": environment, "rows": rows}
    return write_report(results, examples or [], tmp_path / "deep" / "report.html", "A title").read_text("utf-8")


def body(html: str) -> list[str]:
    """The lines of the first table, tags removed and cells apart."""
    table = html[html.index("<tbody>") : html.index("</tbody>")]
    return [re.sub(r"\s*<[^>]+>\s*", " | ", line) for line in table.split("<tr")[1:]]


def test_summary_is_computed_from_the_row_nearest_to_sixty_percent(tmp_path: Path) -> None:
    rows = [DENSE, row("patchranking", 0.5, top1=1.0), row("patchranking", 0.6), row("random", 0.6, top1=80.0)]
    html = page(tmp_path, rows).replace("\u00a0", " ")
    assert "At 60 % of the patches kept, patchranking costs 0.310 instead of 0.410 GMACs (−24 %)" in html
    assert "changes top-1 from 96.2 to 96.0 % and runs at 1.24× the speed" in html
    assert "At the same rate random reaches 80.0 %." in html


def test_summary_averages_seeds(tmp_path: Path) -> None:
    html = page(tmp_path, [row("patchranking", 0.6, seed=seed, top1=90.0 + seed) for seed in (0, 4)])
    assert "from 96.2 to 92.0" in html
    assert "seed 4" in html


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    examples = [Example(Image.new("RGB", (8, 8)), "x", np.zeros((2, 2)), {"random": np.arange(4).reshape(2, 2)})]
    html = page(tmp_path, [DENSE, row("patchranking", 0.6), GOLDEN], examples)
    assert "<script src" not in html
    assert "fetch(" not in html
    assert "<link" not in html
    assert html.count("http") == len(re.findall(r'xmlns(?::xlink)?="http://www\.w3\.org/', html)) > 0
    assert re.findall(r'src="(?!data:image/jpeg;base64,)', html) == []
    assert html.count("<img") == 3


def test_the_badge_stands_on_oracle_rows_and_nowhere_else(tmp_path: Path) -> None:
    html = page(tmp_path, [DENSE, row("patchranking", 0.6), GOLDEN, row("golden", 0.5, oracle=True)])
    marked = [line for line in body(html) if "oracle" in line]
    assert len(marked) == html.count('class="badge"') == 2
    assert all("golden" in line for line in marked)
    assert "very image it is judged on" in html
    assert "very image it is judged on" not in page(tmp_path, [DENSE, row("patchranking", 0.6)])


def test_missing_values_are_dashes_and_their_charts_are_left_out(tmp_path: Path) -> None:
    missing = dict.fromkeys(("top1", "top1_dense", "images_per_second", "images_per_second_dense", "feature_cosine"))
    html = page(tmp_path, [row("patchranking", 0.6, **missing)], gpu=None)
    assert body(html)[0].count("–") == 5
    assert "<svg" not in html
    assert "<dd>–</dd>" in html
    assert "None" not in html
    assert "Object<br>" not in html


def test_results_without_labels_speak_of_the_cosine(tmp_path: Path) -> None:
    html = page(tmp_path, [row("patchranking", 0.6, top1=None, top1_dense=None)])
    assert "keeps a cosine of 0.990 to the dense features" in html
    assert html.count("<svg") == 2


def test_differences_have_signs(tmp_path: Path) -> None:
    rows = [row("random", rate, top1=top1) for rate, top1 in ((0.9, 97.2), (0.8, 96.18), (0.7, 90.0))]
    lines = body(page(tmp_path, rows))
    assert [re.search(r"[| ]([+−]?\d+\.\d) \|  \| 0\.990", line)[1] for line in lines] == ["+1.0", "0.0", "−6.2"]  # type: ignore[index]


def test_the_oracle_is_compared_on_the_same_images(tmp_path: Path) -> None:
    html = page(tmp_path, [row("patchranking", 0.6), GOLDEN])
    assert "on the same images" in html
    assert "91.7 <small>–</small>" in html
    assert "<td>200</td>" in html
    assert "on the same images" not in page(tmp_path, [row("patchranking", 0.6)])


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    examples = [Example(Image.new("RGB", (8, 8)), '<x-caption title="y">')]
    rows = [row("<x-method>", 0.6, dataset="<x-data>", model="<x-model>")]
    html = page(tmp_path, rows, examples, command="a '<x-command>'", note="<x-note>")
    assert "<x-" not in html
    assert html.count("&lt;x-caption title=&#34;y&#34;&gt;") == 2
    assert "a &#39;&lt;x-command&gt;&#39;" in html


def test_every_data_set_and_model_has_its_section(tmp_path: Path) -> None:
    rows = [row("random", 0.6), row("random", 0.6, dataset="photos"), row("random", 0.6, model="other")]
    html = page(tmp_path, rows)
    assert re.findall(r"<h2>(.*?)</h2>", html)[:3] == [
        "demo · test · demo",
        "photos · test",
        "demo · test · other",
    ]


def test_results_with_dense_rows_only_or_none(tmp_path: Path) -> None:
    assert "no pruned model" in page(tmp_path, [DENSE])
    assert "no pruned model" in page(tmp_path, [])


def test_a_failed_write_leaves_the_old_page_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "deep" / "report.html"
    before = page(tmp_path, [DENSE])

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        page(tmp_path, [row("random", 0.6)])
    assert out.read_text("utf-8") == before
    assert list(out.parent.iterdir()) == [out]


def test_missing_jinja_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"patchranking\[report\]"):
        page(tmp_path, [DENSE])


def test_retrieval_and_the_dense_index_have_columns_where_they_were_measured(tmp_path: Path) -> None:
    html = page(tmp_path, [row("patchranking", 0.6, recall_at_1=41.25, index_overlap_at_10=0.873)])
    assert "41.2" in body(html)[0]
    assert "87.3\u00a0%" in body(html)[0]
    assert "Same 10" not in page(tmp_path, [row("patchranking", 0.6)])


@pytest.fixture
def _no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the charts out, which take most of the time."""
    monkeypatch.setattr("patchranking.report.page.accuracy_against_cost", lambda *_: "")


def cells(html: str, table: int = 0) -> list[list[str]]:
    """The rows of a table, head first, as the text of their cells."""
    found = html.split("<table>")[1 + table].split("</table>")[0].replace("\u00a0", " ")
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in found.split("<tr")[1:]]
    return [[re.sub(r"<[^>]+>", " ", cell).strip() for cell in line] for line in rows]


@pytest.mark.usefixtures("_no_charts")
def test_a_row_of_the_table_cell_by_cell(tmp_path: Path) -> None:
    more = {"recall_at_1": 41.26, "index_overlap_at_10": 0.8731, "object_patches_kept": 0.7512, "kept_patches": 1086}
    html = page(tmp_path, [row("patchranking", 0.555, top1=95.14, feature_cosine=0.98765, gmacs=0.31251, **more)])
    assert cells(html) == [
        [
            *("Method", "Kept", "Patches", "Top-1, %", "Change, points", "Feature cosine", "Recall@1, %"),
            *("Same 10 neighbours", "Object patches kept", "GMACs", "Images per s", "Speed ratio"),
        ],
        [
            *("patchranking", "55.5 %", "1,086", "95.1", "−1.1", "0.988", "41.3"),
            *("87.3 %", "75.1 %", "0.313", "990", "1.24×"),
        ],
    ]
    slow = page(tmp_path, [row("random", 0.6, images_per_second=12.34, images_per_second_dense=24.68)])
    assert cells(slow)[1] == ["random", "60 %", "38", "96.0", "−0.2", "0.990", "0.310", "12.3", "0.50×"]


@pytest.mark.usefixtures("_no_charts")
def test_rows_go_down_the_keep_rates_with_oracles_last_at_each(tmp_path: Path) -> None:
    names = ("golden", "zebra", "random", "patchranking", "tome")
    rows = [row(name, rate, oracle=name == "golden") for rate in (0.5, 0.7) for name in names]
    rows += [row("random", 0.5, seed=seed, top1=90.0 + seed) for seed in (4, 2)]
    html = page(tmp_path, [*rows, DENSE])
    order = ["patchranking", "tome", "random", "zebra", "golden"]
    found = [(line[0].split()[0], line[1]) for line in cells(html)[1:]]
    assert found == [
        ("dense", "100 %"),
        *((name, "70 %") for name in order),
        *((name, "50 %") for name in [*order[:2], *["random"] * 3, *order[3:]]),
    ]
    assert [line[0].split("seed")[1] for line in cells(html)[1:] if line[0].startswith("random")] == [
        " 0",
        " 0",
        " 2",
        " 4",
    ]
    assert len(re.findall(r'<tr class="first', html.split("<tbody>")[1].split("</tbody>")[0])) == 3
    assert len(re.findall(r'<tr class="[^"]*ours', html)) == 2


@pytest.mark.usefixtures("_no_charts")
def test_a_seed_is_named_only_beside_others_and_tokens_always(tmp_path: Path) -> None:
    html = page(tmp_path, [row("patchranking", 0.6, seed=3), row("patchranking", 0.6, seed=3, tuned="both")])
    assert [line[0] for line in cells(html)[1:]] == ["patchranking", "patchranking both tokens"]


@pytest.mark.usefixtures("_no_charts")
def test_every_method_has_a_dot_of_its_colour(tmp_path: Path) -> None:
    html = page(tmp_path, [row("evit", 0.6), GOLDEN])
    dots = re.findall(r'<i class="dot" style="background:(#\w+)"></i>([\w-]+)', html)
    assert dots == [(style(name).colour, name) for name in ("evit", "golden", "patchranking")]


@pytest.mark.usefixtures("_no_charts")
def test_the_summary_and_its_figures_speak_of_our_method_at_one_rate(tmp_path: Path) -> None:
    rows = [
        row("golden", 0.6, oracle=True, top1=99.0),
        row("evit", 0.6, top1=91.0),
        row("tome", 0.6, top1=93.0),
        row("patchranking", 0.7, top1=95.0, gmacs=0.4),
        row("patchranking", 0.45, top1=12.0),
        row("patchranking", 0.7, top1=13.0, tuned="text"),
        row("random", 0.7, top1=88.0),
        row("golden", 0.7, top1=99.0, oracle=True),
        row("low-res", 0.7, top1=90.0),
        row("tome", 0.7, top1=91.0),
    ]
    html = page(tmp_path, rows).replace("\u00a0", " ")
    assert (
        "At 70 % of the patches kept, patchranking costs 0.400 instead of 0.410 GMACs (−2 %), changes top-1 from "
        "96.2 to 95.0 % and runs at 1.24× the speed. At the same rate tome reaches 91.0 %, low-res reaches 90.0 % and "
        "random reaches 88.0 %."
    ) in html
    tiles = re.findall(r'<div class="card"><b>(.*?)</b><span>(.*?)</span></div>', html)
    assert tiles == [
        ("−2 %", "compute (GMACs)"),
        ("−1.2", "points of top-1"),
        ("1.24×", "images per second"),
        ("0.990", "cosine to dense features"),
    ]
    assert "Against the dense model, patchranking at 70 % of the patches:" in html


@pytest.mark.usefixtures("_no_charts")
def test_without_our_method_the_baseline_nearest_to_sixty_percent_is_summed_up(tmp_path: Path) -> None:
    html = page(tmp_path, [row("random", 0.9), row("evit", 0.55), row("golden", 0.6, oracle=True)])
    assert "At 55\u00a0% of the patches kept, evit costs" in html


@pytest.mark.usefixtures("_no_charts")
def test_the_number_of_images_is_that_of_most_rows(tmp_path: Path) -> None:
    assert "demo, 2,000 images." in page(tmp_path, [GOLDEN, row("random", 0.6)])


def test_charts_come_in_the_order_of_the_measures_with_time_second(tmp_path: Path) -> None:
    html = page(tmp_path, [row("random", 0.6, index_overlap_at_10=0.5)])
    assert re.findall(r'aria-label="(.*?) against (\w+)', html) == [
        ("Zero-shot top-1 (%)", "GMACs"),
        ("Zero-shot top-1 (%)", "Milliseconds"),
        ("Cosine to the dense features", "GMACs"),
        ("Dense index: same 10 neighbours (%)", "GMACs"),
    ]


@pytest.mark.usefixtures("_no_charts")
def test_the_oracles_table_has_its_result_first_and_then_the_others_in_order(tmp_path: Path) -> None:
    beside = {
        "low-res": {"top1": 1.0, "feature_cosine": 0.1},
        "tome": {"top1": 2.0},
        "dense": {"top1": 99.0, "feature_cosine": 1.0},
    }
    golden = [row("golden", rate, oracle=True, n_images=1234, top1=98.0, same_images=beside) for rate in (0.5, 0.7)]
    golden[1]["same_images"] = {"dense": {"top1": 97.0, "feature_cosine": 1.0}}
    assert cells(page(tmp_path, golden), 1) == [
        ["Oracle", "Kept", "Images", "Its result", "dense", "tome", "low-res"],
        ["golden", "70 %", "1,234", "98.0  0.990", "97.0  1.000", "–  –", "–  –"],
        ["golden", "50 %", "1,234", "98.0  0.990", "99.0  1.000", "2.0  –", "1.0  0.100"],
    ]


@pytest.mark.usefixtures("_no_charts")
def test_a_mask_has_a_patch_in_every_place_and_the_first_sixty_percent_are_kept(tmp_path: Path) -> None:
    places = np.random.default_rng(0).permutation(12).reshape(3, 4)
    html = page(tmp_path, [DENSE], [Example(Image.new("RGB", (8, 8)), "x", None, {"random": places})])
    assert 'viewBox="0 0 4 3"' in html
    assert 'data-patches="12"' in html
    patches = re.findall(
        r'<rect x="(\d+)" y="(\d+)" width="1.02" height="1.02" data-place="(\d+)"( class="kept")?', html
    )
    assert [(int(x), int(y), int(place)) for x, y, place, _ in patches] == [
        (x, y, places[y, x]) for y in range(3) for x in range(4)
    ]
    assert sorted(int(place) for *_, place, kept in patches if kept) == list(range(7))
