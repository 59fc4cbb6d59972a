from __future__ import annotations

import base64
import csv
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchranking.errors import MissingExtraError
from patchranking.evaluation.examples import Example, View
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


def plain(html: str) -> str:
    """What is to read: tags removed, spaces made one."""
    html = re.sub(r"<(style|script)>.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", html).replace("\u00a0", " ").split())


def table(html: str, number: int = 0) -> list[dict[str, str]]:
    """The rows of a table, cells under their headings."""
    whole = re.findall(r"<table[^>]*>(.*?)</table>", html, re.DOTALL)[number]
    heads = [plain(cell) for cell in re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", whole)]
    lines = re.findall(r"<tr[^>]*>(.*?)</tr>", whole[whole.index("<tbody>") :], re.DOTALL)
    cells = [[plain(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line)] for line in lines]
    return [dict(zip(heads, line, strict=True)) for line in cells]


def test_every_number_stands_in_its_column(tmp_path: Path) -> None:
    measured = {"top1": 61.24, "top1_dense": 63.3, "feature_cosine": 0.9126, "object_patches_kept": 0.8123}
    measured |= {"top1_change_interval": [-3.04, 0.96], "text_recall_at_1": 52.04}
    found = {"recall_at_1": 41.26, "index_overlap_at_10": 0.876, "gmacs": 3.14159, "gmacs_dense": 5.0}
    speed = {"images_per_second": 45.67, "images_per_second_dense": 30.0}
    rows = [
        row("patchranking", 0.625, kept_patches=40, **measured, **found, **speed),
        row("random", 1 / 3, kept_patches=1234, images_per_second=1234.5, images_per_second_dense=1000.0),
    ]
    first, second = table(page(tmp_path, rows))
    assert first == {
        "Method": "patchranking",
        "Kept": "62.5 %",
        "Patches": "40",
        "Top-1, %": "61.2",
        "Change, points": "−2.1",
        "95 % interval": "−3.0 to +1.0",
        "Feature cosine": "0.913",
        "Recall@1, %": "41.3",
        "Recall@1 of text, %": "52.0",
        "Same 10 neighbours": "87.6 %",
        "Object patches kept": "81.2 %",
        "Share of the MACs": "62.8 %",
        "GMACs": "3.142",
        "Images per s": "45.7",
        "Speed ratio": "1.52×",
    }
    assert (second["Method"], second["Kept"], second["Patches"]) == ("random", "33.3 %", "1,234")
    assert (second["Images per s"], second["Speed ratio"]) == ("1,234", "1.23×")
    assert (second["Recall@1, %"], second["Same 10 neighbours"], second["Object patches kept"]) == ("–", "–", "–")


def test_lines_go_from_all_patches_to_few_methods_in_order_and_oracles_last(tmp_path: Path) -> None:
    rows = [
        row("golden", 0.6, oracle=True),
        row("random", 0.6, seed=1),
        row("random", 0.6),
        row("patchranking", 0.6, oracle=True),
        row("patchranking", 0.3),
        row("patchranking", 0.6, tuned="text"),
        row("brand-new", 0.6),
        DENSE,
    ]
    html = page(tmp_path, rows)
    lines = [(line["Kept"], line["Method"]) for line in table(html)]
    assert lines == [
        ("100 %", "dense seed 0"),
        ("60 %", "patchranking text tokens seed 0"),
        ("60 %", "random seed 0"),
        ("60 %", "random seed 1"),
        ("60 %", "brand-new seed 0"),
        ("60 %", "patchranking seed 0 oracle"),
        ("60 %", "golden seed 0 oracle"),
        ("30 %", "patchranking seed 0"),
    ]
    kinds = re.findall(r'<tr class="([^"]*)" data-method', html)[:8]
    assert kinds == ["first", "first ours", "", "", "", " ours", "", "first ours"]
    assert "seed" not in table(page(tmp_path, [DENSE, row("random", 0.6)]))[1]["Method"]


def test_the_tiles_are_the_key_figures(tmp_path: Path) -> None:
    html = page(tmp_path, [row("patchranking", 0.6, top1_change_interval=[-0.62, 0.2])])
    tiles = re.findall(r'<div class="card"><b>(.*?)</b><span>(.*?)</span>(?:<small>(.*?)</small>)?</div>', html)
    assert [tuple(part.replace("\u00a0", " ") for part in tile) for tile in tiles] == [
        ("−24 %", "compute (GMACs)", "0.310 instead of 0.410"),
        ("−0.2", "points of top-1", "95 % interval −0.6 to +0.2"),
        ("1.24×", "images per second", "990 instead of 800"),
        ("0.990", "cosine to dense features", ""),
    ]
    assert "demo, 2,000 images." in plain(html)
    assert "Against the dense model, patchranking at 60 % of the patches:" in plain(html)


def test_the_summary_is_of_patchranking_else_of_what_is_nearest_to_sixty_percent(tmp_path: Path) -> None:
    low = {"feature_cosine": 0.9}
    rows = [row("random", 0.6, top1=80.0), row("patchranking", 0.7, **low), row("patchranking", 0.4, **low), GOLDEN]
    assert "At 70 % of the patches kept, patchranking costs" in plain(page(tmp_path, rows))
    rows = [
        row("random", 0.45),
        row("evit", 0.7, top1=81.0),
        row("random", 0.7, top1=82.0),
        row("golden", 0.6, oracle=True),
    ]
    html = plain(page(tmp_path, rows))
    assert "At 70 % of the patches kept, evit costs" in html
    assert "At the same rate random reaches 82.0 %." in html
    assert "golden reaches" not in html


def test_the_summary_keeps_settings_apart_and_averages_the_others(tmp_path: Path) -> None:
    rows = [row("patchranking", 0.6), row("patchranking", 0.6, tuned="text", top1=50.0)]
    rows += [
        row("patchranking", 0.6, schedule={"2": 0.6}, top1=40.0),
        row("patchranking", 0.5, top1=30.0, feature_cosine=0.9),
    ]
    rows += [row("random", 0.6, seed=seed, top1=80.0 + seed) for seed in (0, 1)] + [row("evit", 0.6, top1=70.0)]
    html = plain(page(tmp_path, rows))
    assert "changes top-1 from 96.2 to 96.0 %" in html
    assert "At the same rate evit reaches 70.0 % and random reaches 80.5 %." in html


def test_the_summary_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    bare = dict.fromkeys(("top1_dense", "gmacs_dense", "images_per_second_dense"))
    html = plain(page(tmp_path, [row("patchranking", 0.6, **bare), row("random", 0.6, top1=None)]))
    assert "At 60 % of the patches kept, patchranking keeps a cosine of 0.990 to the dense features. " in html
    assert "At the same rate" not in html
    html = plain(page(tmp_path, [row("patchranking", 0.6, top1=None), row("random", 0.6)]))
    assert "At the same rate" not in html


def test_a_section_says_the_most_images_of_its_rows(tmp_path: Path) -> None:
    assert "demo, 2,000 images." in plain(page(tmp_path, [GOLDEN, row("random", 0.6), GOLDEN]))


def test_charts_are_of_every_measure_and_of_time_once(tmp_path: Path) -> None:
    rows = [DENSE, row("patchranking", 0.6, object_patches_kept=0.9)]
    drawn = re.findall(r'aria-label="(.*?) on demo"', page(tmp_path, rows))
    gmacs = "GMACs of the image tower per image"
    assert drawn == [
        f"Zero-shot top-1 (%) against {gmacs}",
        "Zero-shot top-1 (%) against Milliseconds per image, measured",
        f"Cosine to the dense features against {gmacs}",
        f"Object patches kept (%) against {gmacs}",
    ]


def test_every_method_beside_the_oracle_has_its_cell(tmp_path: Path) -> None:
    dense = {"top1": 93.0, "feature_cosine": 1.0}
    same = {"random": {"top1": 71.26, "feature_cosine": 0.8126}, "dense": dense}
    other = {"evit": {"top1": 75.0, "feature_cosine": 0.85}}
    oracle = {"oracle": True, "top1": 92.34, "feature_cosine": 0.9876, "top1_change_interval": [-2.0, 1.0]}
    rows = [
        row("golden", 0.6, n_images=1200, same_images=same, **oracle),
        row("golden", 0.5, oracle=True, n_images=20, same_images=other),
    ]
    first, second = table(page(tmp_path, [*rows, row("random", 0.6)]), 1)
    assert first == {
        "Oracle": "golden",
        "Kept": "60 %",
        "Images": "1,200",
        "Result": "92.3 0.988",
        "Dense on the same": "93.0 1.000",
        "Change, points": "−0.7",
        "95 % interval": "−2.0 to +1.0",
        "evit": "– –",
        "random": "71.3 0.813",
    }
    assert (second["Kept"], second["evit"], second["random"]) == ("50 %", "75.0 0.850", "– –")


def test_the_environment_and_the_command_are_said(tmp_path: Path) -> None:
    command = "patchranking evaluate --data 'my set'"
    html = page(tmp_path, [DENSE], torch_threads=2, versions="a 1, b 2", gpu="", command=command)
    named = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html)
    assert named == [("torch threads", "2"), ("versions", "a 1, b 2"), ("gpu", "–")]
    assert "patchranking evaluate --data &#39;my set&#39;" in html
    assert ">as it is</pre>" in page(tmp_path, [DENSE], command="as it is")
    assert "<pre" not in page(tmp_path, [DENSE])
    assert (html.count("<title>A title</title>"), html.count("<h1>A title</h1>")) == (1, 1)


def test_summary_is_computed_from_the_row_nearest_to_sixty_percent(tmp_path: Path) -> None:
    other = row("patchranking", 0.5, top1=1.0, feature_cosine=0.9)
    rows = [DENSE, other, row("patchranking", 0.6), row("random", 0.6, top1=80.0)]
    html = page(tmp_path, rows).replace("\u00a0", " ")
    assert "At 60 % of the patches kept, patchranking costs 0.310 instead of 0.410 GMACs (−24 %)" in html
    assert "changes top-1 from 96.2 to 96.0 % and runs at 1.24× the speed" in html
    assert "At the same rate random reaches 80.0 %." in html


def test_summary_averages_seeds(tmp_path: Path) -> None:
    html = page(tmp_path, [row("patchranking", 0.6, seed=seed, top1=90.0 + seed) for seed in (0, 4)])
    assert "from 96.2 to 92.0" in html
    assert "seed 4" in html


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    view = View(np.array([[0, 1], [1, 2]]), 2, 0.9, "y")
    examples = [Example(Image.new("RGB", (8, 8)), "x", np.zeros((2, 2)), {"random": {0.6: view}})]
    html = page(tmp_path, [DENSE, row("patchranking", 0.6), GOLDEN], examples)
    assert "<script src" not in html
    assert "fetch(" not in html
    assert "<link" not in html
    assert html.count("http") == len(re.findall(r'xmlns(?::xlink)?="http://www\.w3\.org/', html)) > 0
    assert re.findall(r"(?:src=\"|url\()(?!data:image/jpeg;base64,|#)", html) == []
    assert re.findall(r'href="(?!data:text/csv;|#)', html) == []
    assert html.count("data:image/jpeg") == 2


def test_the_badge_stands_on_oracle_rows_and_nowhere_else(tmp_path: Path) -> None:
    html = page(tmp_path, [DENSE, row("patchranking", 0.6), *(row("golden", rate, oracle=True) for rate in (0.6, 0.5))])
    marked = [line for line in body(html) if "oracle" in line]
    assert len(marked) == html.count('class="badge"') == 2
    assert all("golden" in line for line in marked)
    assert "very image it is judged on" in html
    assert "very image it is judged on" not in page(tmp_path, [DENSE, row("patchranking", 0.6)])


def test_missing_values_are_dashes_and_their_charts_are_left_out(tmp_path: Path) -> None:
    missing = dict.fromkeys(("top1", "top1_dense", "images_per_second", "images_per_second_dense", "feature_cosine"))
    html = page(tmp_path, [row("patchranking", 0.6, **missing)], gpu=None)
    assert body(html)[0].count("–") == 3
    assert "Top-1" not in table(html)[0]
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
    assert [line["Change, points"] for line in table(page(tmp_path, rows))] == ["+1.0", "0.0", "−6.2"]


def test_an_oracle_on_fewer_images_stands_in_a_table_of_its_own_and_in_no_chart(tmp_path: Path) -> None:
    html = page(tmp_path, [row("patchranking", 0.6), GOLDEN])
    assert [line["Method"] for line in table(html)] == ["patchranking"]
    (oracle,) = table(html, 1)
    assert (oracle["Oracle"], oracle["Images"], oracle["patchranking"]) == ("golden", "200", "91.7 –")
    assert "very image it is judged on" in html
    assert "golden" not in "".join(re.findall(r"<figure.*?</figure>", html, re.DOTALL))
    assert "on fewer images" not in page(tmp_path, [row("patchranking", 0.6)])


def test_it_says_which_keep_rate_to_use_and_by_which_rule(tmp_path: Path) -> None:
    rows = [row("patchranking", rate, macs_share=rate, top1_change_interval=[-rate, 0.2]) for rate in (0.9, 0.5)]
    words = plain(page(tmp_path, [DENSE, *rows]))
    assert "Use keep = 0.5 with patchranking: 50 % of the dense model&#39;s MACs" in words
    assert "(95 % interval −0.5 to +0.2)" in words
    assert "does not reach below −1 point." in words
    lost = [row("patchranking", 0.9, top1_change_interval=[-9.0, -2.0])]
    assert "No keep rate to recommend" in plain(page(tmp_path, lost))


def test_lost_retrieval_has_a_tile_for_each_way(tmp_path: Path) -> None:
    dense = {**DENSE, "recall_at_1": 42.0, "text_recall_at_1": 50.0}
    pruned = row("patchranking", 0.6, recall_at_1=40.5, text_recall_at_1=50.4)
    words = plain(page(tmp_path, [dense, pruned]))
    assert "−1.5 points of recall@1, caption to picture 40.5 instead of 42.0 %" in words
    assert "+0.4 points of recall@1, picture to caption 50.4 instead of 50.0 %" in words
    assert "points of recall@1" not in plain(page(tmp_path, [DENSE, row("patchranking", 0.6)]))


def test_every_image_is_accounted_for(tmp_path: Path) -> None:
    results = {
        "environment": {},
        "rows": [DENSE],
        "images": {"in": 12, "evaluated": 11, "skipped": 1, "left_out": 30},
        "skipped": {"a/<b>.png": "it is broken"},
        "left_out": {"count": 30, "reasons": {}, "first": {f"{number}.txt": "no picture" for number in range(10)}},
        "notes": ["Names are numbers."],
    }
    html = write_report(results, [], tmp_path / "report.html", "A title").read_text("utf-8")
    words = plain(html)
    assert "42 in = 11 evaluated + 1 skipped + 30 left out." in words
    assert "Names are numbers." in words
    lines = table(html, 1)
    assert lines[0] == {"Image or file": "a/&lt;b&gt;.png", "Why it is not in these results": "it is broken"}
    assert len(lines) == 11
    assert "And 20 more." in words
    assert "left out" not in plain(page(tmp_path, [DENSE]))


def test_the_rows_can_be_filtered_and_downloaded(tmp_path: Path) -> None:
    html = page(tmp_path, [DENSE, row("patchranking", 0.6), row("random", 0.6), GOLDEN])
    assert re.findall(r"<option>(.*?)</option>", html) == ["dense", "patchranking", "random"]
    assert re.findall(r'<tr class="[^"]*" data-method="(\w+)"', html) == ["dense", "patchranking", "random"]
    (data,) = re.findall(
        r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="patchranking-demo-test.csv"', html
    )
    found = list(csv.DictReader(io.StringIO(base64.b64decode(data).decode("utf-8-sig"))))
    assert [one["method"] for one in found] == ["dense", "patchranking", "random", "golden"]


def test_the_wall_shows_the_worst_first_and_what_was_said_before_and_after(tmp_path: Path) -> None:
    image, passed = Image.new("RGB", (8, 8), "red"), np.array([[0, 1, 2]])
    views = {"patchranking": {0.5: View(passed, 2, 0.91, "dog"), 0.7: View(passed, 2, 0.99, "cat")}}
    as_it_comes = Example(image, "cow", np.zeros((1, 3)), views, "cow/1.png", "dog")
    worst = Example(image, "cat", None, views, "cat/7.png", "cat", worst=True)
    html = page(tmp_path, [DENSE, row("patchranking", 0.5)], [as_it_comes, worst])
    words = plain(html)
    start = words.index("Where the pruned and the dense model disagree most")
    assert "with patchranking at 50 % of the patches: those with another prediction first" in words[start:]
    first, second = (plain(figure) for figure in re.findall(r'<figure class="card" style.*?</figure>', html, re.DOTALL))
    assert first == "cat cat/7.png image dense says cat ✓ patchranking cosine 0.910 dog"
    assert second == "cow cow/1.png image dense says dog patchranking cosine 0.910 dog golden ranking"
    assert words.index("cat/7.png") < words.index("Other images, as they come") < words.index("cow/1.png")
    assert html.count('<rect x="0" y="0" class="a"/><rect x="1" y="0" class="b"/><rect x="2" y="0" class="k"/>') == 2
    assert re.findall(r'class="says( changed)?"><span>', html) == [" changed", ""]
    assert 'max="1" step="1" value="0" aria-valuetext="50\u00a0%"' in html
    assert "dropped by the first stage" in words
    assert "disagree most" not in page(tmp_path, [DENSE, row("patchranking", 0.5)], [as_it_comes])


def test_one_data_set_has_one_heading(tmp_path: Path) -> None:
    html = page(tmp_path, [row("patchranking", 0.6, model="open_clip:local-dir:/models/one")])
    assert [plain(head) for head in re.findall(r"<h[123]>(.*?)</h[123]>", html)] == [
        "A title",
        "All results",
        "How this was measured",
    ]
    assert "open_clip:local-dir:/models/one, 2,000 images." in plain(html)


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    views = {"<x-method>": {0.6: View(np.zeros((1, 2), int), 1, 0.9, "<x-class>'")}}
    examples = [Example(Image.new("RGB", (8, 8)), '<x-caption title="y">', None, views, "<x-key>", "<x-class>")]
    rows = [row("<x-method>", 0.6, dataset="<x-data>", model="<x-model>")]
    html = page(tmp_path, rows, examples, command="a '<x-command>'", note="<x-note>")
    assert "<x-" not in html
    assert html.count("&lt;x-caption title=&#34;y&#34;&gt;") == 3
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
