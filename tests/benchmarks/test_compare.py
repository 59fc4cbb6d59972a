from __future__ import annotations

import json

import compare as script
from compare import compare
from PIL import Image

from patchranking.methods import STYLES


def test_every_method_is_measured_and_the_examples_are_shown(pruner, tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr(script, "write_report", lambda *arguments: reports.append(arguments))
    (pruner / "fit.json").write_text('{"n_images": 3}')
    out, picture, report = (tmp_path / name for name in ("compare.json", "picture.png", "report.html"))
    options = {"golden_images": 2, "seeds": 2, "limit": 3, "timing_batch": 0, "examples": 1}
    compare("demo", ["demo:test"], pruner, out, [0.5], picture=picture, report=report, **options)
    results = json.loads(out.read_text())
    rows = results["rows"]
    assert results["fit"] == {"n_images": 3}
    assert results["environment"]["dtype"] == "float32"
    assert {row["method"] for row in rows} == set(STYLES)
    assert len(rows) == len(STYLES) + 1
    assert {row["seed"] for row in rows if row["method"] == "random"} == {0, 1}
    assert {row["n_images"] for row in rows} == {2, 3}
    assert all(0 < row["feature_cosine"] <= 1 + 1e-6 and 0 <= row["top1"] <= 100 for row in rows)
    assert all(row["gmacs"] < row["gmacs_dense"] for row in rows if row["method"] != "dense")
    assert Image.open(picture).width > 100
    (written,) = reports
    assert written[0]["rows"] == rows
    assert [len(written[1]), written[2]] == [1, report]


def test_several_data_sets_without_the_oracle(pruner, tmp_path):
    out = tmp_path / "compare.json"
    compare("demo", ["demo:test", "demo:val"], pruner, out, [0.5], seeds=1, limit=2, timing_batch=0)
    results = json.loads(out.read_text())
    assert results["fit"] is None
    assert {row["split"] for row in results["rows"]} == {"test", "val"}
    assert {row["method"] for row in results["rows"]} == set(STYLES) - {"golden"}
