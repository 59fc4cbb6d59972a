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
