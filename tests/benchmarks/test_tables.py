from __future__ import annotations

import json
from pathlib import Path

import tables

from patchranking.methods import STYLES


def test_methods_stand_in_the_order_of_charts():
    results = json.loads((tables.ROOT / "benchmarks/results/compare-photos.json").read_text())
    lines = tables.table("compare-photos", results, "mean").split("\n\n")[1].splitlines()[2:]
    methods = list(dict.fromkeys(line.split("|")[1].strip().partition(",")[0] for line in lines))
    assert [name for name in methods if name in STYLES] == [name for name in STYLES if name in methods]
    assert methods[0] == "patchranking"


def test_a_part_of_the_comparison_is_filled_by_its_name(monkeypatch, tmp_path):
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/compare-some.json").write_text(json.dumps({"differences": [1]}))
    monkeypatch.setattr(tables, "ROOT", Path(tmp_path))
    monkeypatch.setattr(tables.compared, "table", lambda results, part: f"{results['differences']} of {part}")
    page = "<!-- table compare-some -->\n<!-- end -->\n<!-- table compare-some speed -->\nold\n<!-- end -->"
    assert tables.fill(page) == (
        "<!-- table compare-some -->\n[1] of None\n<!-- end -->\n"
        "<!-- table compare-some speed -->\n[1] of speed\n<!-- end -->"
    )


def test_charts_are_files_of_the_docs(monkeypatch):
    monkeypatch.setattr(tables.compared, "charts", lambda results, charts: {"some-top1": f"{len(charts)} drawn"})
    assert tables.charts({}) == {tables.ROOT / "docs/images/compare-some-top1.svg": "4 drawn\n"}


def test_a_page_is_filled(monkeypatch, tmp_path):
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    row = {"dataset": "some/test", "n_images": 9, "tuned": "text", "keep_rate": 0.5, "shots": 4}
    rows = [row | {"seed": seed, "top1": top1} for seed, top1 in ((0, 70.0), (1, 72.0))]
    (tmp_path / "benchmarks/results/few_shot-some.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(tables, "ROOT", Path(tmp_path))
    page = tables.fill("Before\n<!-- table few_shot-some -->\nold\n<!-- end -->\nafter\n")
    assert "| text tokens | 71.0 ± 1.0 |" in page
    assert "4 shots per class, 2 seeds" in page
    assert "old" not in page
    assert page.startswith("Before\n<!-- table few_shot-some -->\n**some/test**")
    assert page.endswith("|\n<!-- end -->\nafter\n")
