from __future__ import annotations

import json

import compare as script
import numpy as np
import pyarrow.parquet as pq
import pytest
from compare import compare
from PIL import Image

from patchranking.data.halves import half_of
from patchranking.errors import UserError
from patchranking.fitting.settings import FitSettings
from patchranking.methods import STYLES
from patchranking.methods.measure import measure

SETTINGS = FitSettings("both", ranked=4, steps=1, epochs=1, blocks=[1, 3], limit=6)

COARSE = {"low-res": 0.08, "tome": 0.05, "evit": 0.06, "cls-attention": 0.06, "patchranking": 0.16}
"""How far these may be from a share with 16 patches, 5 blocks and predictors as large as a block."""


@pytest.fixture
def sets(loaded, tmp_path, monkeypatch):
    """DATA arguments of two data sets, fit and test: pictures in two classes, and pictures with captions."""
    monkeypatch.setattr(script, "load_model", lambda _: loaded)
    rng = np.random.default_rng(0)

    def picture(*parts):
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)

    for split in ("train", "val"):
        for number in range(12):
            picture("things", split, f"kind-{number % 2}", f"{number}.png")
            picture("scenes", split, f"{number}.png")
        lines = [f"{split}/{number}.png\tword {number} {turn}" for number in range(12) for turn in "ab"]
        (tmp_path / f"scenes/{split}.tsv").write_text("\n".join(["image\tcaption", *lines]))
    return [[str(tmp_path / "things" / split), str(tmp_path / f"scenes/{split}.tsv")] for split in ("train", "val")]


@pytest.fixture
def run(sets, tmp_path):
    """Returns a function that compares on both data sets and returns the JSON and the table."""

    def call(**options):
        out = tmp_path / "out/compare.json"
        compare("tiny", SETTINGS, *sets, **{"shares": [0.7], "work": tmp_path / "work", "out": out, **options})
        return json.loads(out.read_text()), pq.read_table(out.with_suffix(".parquet")).to_pylist()

    return call


def test_every_method_has_rows_in_domain_and_out_of_domain(run, tmp_path):
    results, pictures = run(fits=2, golden_images=2, timing_batch=1, shares=[0.6, 0.70001])
    assert {half_of(row["key"]) for row in pictures} == {"test"}
    assert (results["split"], results["fit"]["steps"], results["fit"]["fits"]) == ("test", 1, 2)
    assert results["environment"]["dtype"] == "float32"
    rows = {(row["dataset"], row["method"], row["domain"], row["macs"]): row for row in results["rows"]}
    settings = {(method, domain) for _, method, domain, _ in rows}
    assert settings == {(name, None) for name in STYLES if name != "patchranking"} | {
        ("patchranking", "in"),
        ("patchranking", "out"),
    }
    assert len(rows) == 2 * (1 + 2 * len(STYLES))
    for row in rows.values():
        assert len(row["fits"]) == (2 if row["method"] in ("patchranking", "random") else 1)
        assert abs(row["macs_share"] - row["macs"]) < COARSE.get(row["method"], 0.025)
        assert np.mean(row["feature_cosine_fits"]) == pytest.approx(row["feature_cosine"])
        assert ("top1" in row) == (row["dataset"] == "things/val") != ("recall_at_1" in row) or row["oracle"]
        assert row["n_images"] == 2 if row["oracle"] else row["n_images"] > 2
    own = rows["things/val", "patchranking", "out", 0.7]
    assert own["feature_cosine"] != rows["things/val", "patchranking", "in", 0.7]["feature_cosine"]
    assert len(set(own["feature_cosine_fits"])) == 2
    speeds = {(row["method"], row["macs"]) for row in results["speed"]}
    assert speeds == {(name, share) for name in STYLES if name not in ("dense", "golden") for share in (0.7, 0.6)}
    fits = {str(path.parent.relative_to(tmp_path / "work/fits")) for path in tmp_path.rglob("fit.json")}
    without = ("in", "without-scenes-train", "without-things-train")
    assert fits == {f"{data}/seed-{seed}" for data in without for seed in (0, 1)}
    folders = {(data, seed): tmp_path / f"work/fits/{data}/seed-{seed}/rankings" for data in without for seed in (0, 1)}
    ranked = {fit: set(pq.read_table(folder)["key"].to_pylist()) for fit, folder in folders.items()}
    assert ranked["in", 0] != ranked["in", 1]
    assert {key.split("/")[0] for key in ranked["in", 0] | ranked["in", 1]} == {"things", "scenes"}
    assert {key.split("/")[0] for key in ranked["without-things-train", 0]} == {"scenes"}
    assert {key.split("/")[0] for key in ranked["without-scenes-train", 0]} == {"things"}
    assert not (tmp_path / "work/measured").exists()


def test_the_table_of_pictures_has_what_the_rows_are_means_of(run):
    results, pictures = run(fits=2, half="dev")
    assert results["split"] == "dev"
    assert {half_of(row["key"]) for row in pictures} == {"dev"}
    for row in results["rows"]:
        about = [row[name] for name in ("dataset", "method", "domain")]
        own = [p for p in pictures if [p["dataset"], p["method"], p["domain"]] == about]
        assert len(own) == row["n_images"] * len(row["fits"])
        assert {p["fit"] for p in own} == set(row["fits"])
        assert {round(p["macs"], 4) for p in own} == {row["macs"]}
        for name, scale in (("top1", 100), ("feature_cosine", 1), ("recall_at_1", 100), ("text_recall_at_1", 100)):
            values = [scale * p[name] for p in own if p[name] is not None]
            assert (np.mean(values) if values else None) == pytest.approx(row.get(name))
        assert 0 < np.mean([p["overlap_at_10"] for p in own]) == pytest.approx(row["overlap_at_10"])


def test_a_killed_run_goes_on_without_a_second_fit_or_look_at_a_picture(run, monkeypatch):
    _, table = run(fits=1)
    (fitted, looked), done = ([], []), script.fit_pruner
    monkeypatch.setattr(script, "fit_pruner", lambda *some: fitted.append(some) or done(*some))

    def killed(model, data, *more):
        if data.name == "scenes":
            raise KeyboardInterrupt
        return measure(model, data, *more)

    def watched(model, data, *more):
        read, data.image = data.image, lambda index: looked.append(data.name) or read(index)
        return measure(model, data, *more)

    monkeypatch.setattr(script, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        run(fits=1)
    monkeypatch.setattr(script, "measure", watched)
    assert run(fits=1)[1] == table
    assert fitted == []
    assert set(looked) == {"scenes"}


def test_with_one_data_set_there_is_no_other_to_fit_to(sets, tmp_path):
    out = tmp_path / "compare.json"
    compare("tiny", SETTINGS, sets[0][:1], sets[1][:1], shares=[0.7], fits=1, work=tmp_path / "work", out=out)
    results = json.loads(out.read_text())
    assert {row["domain"] for row in results["rows"]} == {None, "in"}
    assert {row["dataset"] for row in results["differences"]} == {"things/val"}


def test_examples_are_drawn(run, tmp_path):
    run(fits=1, picture=tmp_path / "some.png", examples=1)
    assert Image.open(tmp_path / "some.png").width > 100


def test_mistakes_are_told_before_any_work(sets, run, tmp_path):
    (first, _), test = sets
    for fit, message in (
        ([first], "as many --fit as --test, not 1 and 2"),
        ([first, first], "Two data sets have the same name"),
        ([first, test[1]], r"test images of scenes/val are in scenes/val, too"),
    ):
        with pytest.raises(UserError, match=message):
            compare("tiny", SETTINGS, fit, test, work=tmp_path / "work", out=tmp_path / "some.json")
    with pytest.raises(UserError, match=r"at least 4.% of the dense MACs: ask for more than 10%"):
        run(shares=[0.7, 0.1])
    assert not (tmp_path / "work").exists()
