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
