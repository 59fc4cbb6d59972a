from __future__ import annotations

import json
from pathlib import Path

import pytest
import tables

from patchranking.methods import STYLES


@pytest.mark.parametrize("name", ["compare-photos", "evaluate-demo"])
def test_methods_stand_in_the_order_of_charts(name):
    results = json.loads((tables.ROOT / f"benchmarks/results/{name}.json").read_text())
    lines = tables.table(name, results).split("\n\n")[1].splitlines()[2:]
    methods = [line.split("|")[1].strip().partition(",")[0] for line in lines]
    assert [name for name in methods if name in STYLES] == [name for name in STYLES if name in methods]
    assert next(name for name in methods if name in STYLES) == "patchranking"


def test_a_comparison_may_have_the_oracle():
    row = {"dataset": "some", "split": "test", "n_images": 9, "oracle": False, "feature_cosine": 0.9}
    row |= {"top1": 80.0, "top1_change_interval": [-1.0, 2.0], "index_overlap_at_10": 0.75}
    dense = row | {"method": "dense", "keep_rate": 1.0}
    pruned = row | {"method": "patchranking", "keep_rate": 0.5}
    golden = pruned | {"method": "golden", "oracle": True, "n_images": 3, "index_overlap_at_10": None}
    shown = tables.table("compare-some", {"rows": [dense, pruned, golden]})
    assert "| patchranking | 80.0 / 75 | 0.900 | -1.0 ... +2.0 |" in shown
    assert "| golden, oracle on 3 images | 80.0 / – | 0.900 |" in shown


def test_the_interval_of_one_seed_does_not_stand_for_several():
    row = {"dataset": "some", "split": "test", "n_images": 9, "oracle": False, "feature_cosine": 0.9}
    row |= {"top1": 80.0, "top1_change_interval": [-1.0, 2.0], "index_overlap_at_10": 0.75}
    seeds = [row | {"method": "random", "keep_rate": 0.5, "seed": seed} for seed in (0, 1)]
    shown = tables.table("compare-some", {"rows": [row | {"method": "dense", "keep_rate": 1.0}, *seeds]})
    assert "| random | 80.0 / 75 | 0.900 | – |" in shown


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


def test_charts_of_both_kinds_of_results_are_files_of_the_docs(monkeypatch):
    monkeypatch.setattr(tables.compared, "charts", lambda results, charts: {"some-top1": f"{len(charts)} new"})
    assert tables.charts({"differences": []}) == {tables.ROOT / "docs/images/compare-some-top1.svg": "4 new\n"}
    monkeypatch.setattr(tables, "accuracy_against_cost", lambda *some: f"old {some[1]}")
    old = tables.charts({"rows": []})
    assert old[tables.ROOT / "docs/images/compare-flowers-top1.svg"] == "old flowers\n"
    assert {file.name for file in old} == {file.name for file in (tables.ROOT / "docs/images").glob("compare-*.svg")}


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
