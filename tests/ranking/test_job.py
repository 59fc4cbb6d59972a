from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.ranking import job, shards
from patchranking.ranking.job import rank
from patchranking.ranking.leave_out import leave_out
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.store import MANIFEST, finished_manifest, iter_rankings, shard_name
from patchranking.towers.identity import fingerprint

FAST = SearchSettings("leave-out", block=3, window=2, stride=2)


@pytest.fixture
def model(tiny):
    return tiny


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(job, "_IMAGES_PER_SHARD", 3)


@pytest.fixture
def salted(tmp_path):
    """Four good pictures, seven odd ones that can be read, and three that cannot."""
    root = tmp_path / "salted" / "val"
    root.mkdir(parents=True)
    noise = Image.effect_noise((40, 30), 90)
    for index in range(4):
        noise.rotate(index * 30).convert("RGB").save(root / f"good{index}.jpg")
    Image.new("RGB", (1, 1), "red").save(root / "one.png")
    Image.new("RGB", (1, 300), "blue").save(root / "thin.png")
    noise.convert("RGB").convert("CMYK").save(root / "cmyk.jpg")
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70).save(root / "deep.png")
    noise.convert("RGB").quantize(16).save(root / "palette.png", transparency=bytes(16))
    noise.save(root / "moving.gif", save_all=True, append_images=[noise.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(root / "turned.jpg", exif=exif)
    (root / "empty.png").touch()
    (root / "text.jpg").write_text("no picture")
    (root / "torn.jpg").write_bytes((root / "good0.jpg").read_bytes()[:400])
    return load_data(str(root))


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("shard-*.parquet")}


def test_stores_what_the_search_returns(model, tmp_path):
    data = load_data("demo:test", 4)
    manifest = rank(model, data, tmp_path, FAST)
    expected = leave_out(model.tower, torch.stack([model.preprocess(data.image(i)) for i in range(4)]), 3, 2, 2)
    rankings = dict(iter_rankings(tmp_path))
    assert list(rankings) == data.keys
    np.testing.assert_allclose(np.stack(list(rankings.values())), expected.importance, rtol=1e-4, atol=1e-7)
    tables = [pq.read_table(path) for path in sorted(tmp_path.glob("*.parquet"))]
    assert [table.num_rows for table in tables] == [2, 2]
    np.testing.assert_array_equal(
        np.concatenate([np.stack(table["removal_order"].to_pylist()) for table in tables]), expected.removal_order
    )
    assert {name for table in tables for name in table["search"].to_pylist()} == {"leave-out"}
    assert manifest["settings"] == {
        "search": "leave-out",
        "score": "preservation",
        "needs_labels": False,
        "block": 3,
        "window": 2,
        "stride": 2,
        "model": "tiny",
        "fingerprint": fingerprint(model.tower),
    }
    for table in tables:
        assert json.loads(table.schema.metadata[b"patchranking"])["settings"] == manifest["settings"]


@pytest.mark.parametrize(("score", "needs_labels"), [("preservation", False), ("confidence", False), ("label", True)])
def test_the_label_score_is_recorded_as_one_that_needs_labels(model, tmp_path, score, needs_labels):
    manifest = rank(model, load_data("demo:test", 2), tmp_path, replace(FAST, score=score))
    assert manifest["settings"]["score"] == score
    assert manifest["settings"]["needs_labels"] is needs_labels
    (shard,) = tmp_path.glob("*.parquet")
    assert json.loads(pq.read_metadata(shard).metadata[b"patchranking"])["settings"] == manifest["settings"]


def test_every_image_of_a_salted_folder_is_accounted_for(model, salted, tmp_path):
    manifest = rank(model, salted, tmp_path, FAST)
    assert manifest["totals"] == {"in": 14, "ranked": 11, "skipped": 3, "left_out": 0}
    assert set(manifest["skipped"]) == {"empty.png", "text.jpg", "torn.jpg"}
    rankings = dict(iter_rankings(tmp_path))
    assert sorted([*rankings, *manifest["skipped"]]) == sorted(salted.keys)
    assert all(np.isfinite(row).all() for row in rankings.values())
    assert json.loads((tmp_path / MANIFEST).read_text()) == manifest


def test_what_is_left_out_is_counted_with_its_reasons(model, tmp_path):
    for name in ("a.png", "@eaDir/a.png", "notes.txt", "more.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "in" / name, "PNG")
    manifest = rank(model, load_data(str(tmp_path / "in")), tmp_path / "out", FAST)
    assert manifest["totals"] == {"in": 1, "ranked": 1, "skipped": 0, "left_out": 3}
    assert manifest["left_out"] == {"made by the system": 1, "'.txt' is no suffix of a picture": 2}


def test_an_image_the_model_cannot_preprocess_is_skipped(model, salted, tmp_path):
    def picky(image):
        if min(image.size) < 2:
            raise ValueError("too small")
        return model.preprocess(image)

    manifest = rank(replace(model, preprocess=picky), salted, tmp_path, FAST)
    assert manifest["totals"] == {"in": 14, "ranked": 9, "skipped": 5, "left_out": 0}
    assert "too small" in manifest["skipped"]["one.png"]
    assert "1 x 300" in manifest["skipped"]["thin.png"]


def test_finished_shards_are_not_made_again(model, salted, tmp_path):
    whole = rank(model, salted, tmp_path, FAST)
    before = contents(tmp_path)
    assert len(before) == 5
    lost = shard_name(1, 5)
    (tmp_path / lost).unlink()
    (tmp_path / f"{lost}.partial").write_bytes(b"half a shard")
    (tmp_path / f"{MANIFEST}.partial").write_text("{")
    again = rank(model, salted, tmp_path, FAST)
    assert again | {"images_per_second": None} == whole | {"images_per_second": None}
    after = contents(tmp_path)
    assert after[lost][0] == before[lost][0]
    del before[lost], after[lost]
    assert after == before
    assert set(dict(iter_rankings(tmp_path))) | set(whole["skipped"]) == set(salted.keys)


def test_the_progress_bar_counts_every_image_and_times_those_of_this_run(model, salted, tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append(self)

    monkeypatch.setattr(job, "tqdm", Bar)
    rank(model, salted, tmp_path, FAST)
    for index in (1, 4):
        (tmp_path / shard_name(index, 5)).unlink()
    rank(model, salted, tmp_path, FAST)
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, 14, 14), (8, 14, 14)]


def test_ranking_again_changes_nothing(model, tmp_path, monkeypatch):
    data = load_data("demo:test", 4)
    whole = rank(model, data, tmp_path, FAST)
    assert whole["images_per_second"] > 0
    before = contents(tmp_path)
    monkeypatch.setattr(shards, "prepare_search", lambda *_: None)
    assert rank(model, data, tmp_path, FAST) == whole
    assert contents(tmp_path) == before


CHANGES = ["settings", "search", "score", "seed", "effort", "images", "keys", "length", "weights"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_is_for_one_job(model, tmp_path, change):
    first = SearchSettings(block=3) if change in ("seed", "effort") else FAST
    rank(model, load_data("demo:test", 2), tmp_path, first)
    before = contents(tmp_path)
    data, settings = load_data("demo:test", 2), FAST
    match change:
        case "settings":
            settings = replace(FAST, stride=1)
        case "search":
            settings = SearchSettings("iterative", block=3)
        case "score":
            settings = replace(FAST, score="confidence")
        case "seed":
            settings = SearchSettings(block=3, seed=1)
        case "effort":
            settings = SearchSettings("sketched-quality", block=3)
        case "images":
            data = load_data("demo:val", 2)
        case "keys":
            data.keys = data.keys[::-1]
        case "length":
            data = load_data("demo:test", 3)
        case "weights":
            model.tower.identity()[0].mul_(2)
    with pytest.raises(UserError, match="choose another folder"):
        rank(model, data, tmp_path, settings)
    assert contents(tmp_path) == before


def test_shards_without_a_manifest_are_not_adopted(model, tmp_path):
    data = load_data("demo:test", 2)
    rank(model, data, tmp_path, FAST)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(UserError, match="without a manifest"):
        rank(model, data, tmp_path, FAST)


def test_a_folder_in_which_nothing_was_ranked_yet_is_free(model, tmp_path, monkeypatch):
    data = load_data("demo:test", 2)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "prepare_search", lambda *_: lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rank(model, data, tmp_path, replace(FAST, stride=1))
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert rank(model, data, tmp_path, FAST)["settings"]["stride"] == 2


def test_images_with_the_same_key_are_refused(model, tmp_path):
    data = load_data("demo:test", 3)
    data.keys[2] = data.keys[0]
    with pytest.raises(UserError, match="same key"):
        rank(model, data, tmp_path, FAST)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_engine_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="choose from local, ray"):
        rank(model, load_data("demo:test", 1), tmp_path, FAST, engine="steam")


def test_an_engine_that_leaves_shards_undone_is_found_out(model, tmp_path, monkeypatch):
    monkeypatch.setitem(job.ENGINES, "local", lambda ranker, pending: ranker.rank(pending[0]))
    with pytest.raises(UserError, match="run the same patchranking rank again"):
        rank(model, load_data("demo:test", 4), tmp_path, FAST)
    with pytest.raises(UserError, match="not finished"):
        finished_manifest(tmp_path)


def test_a_shard_that_holds_too_little_is_found_out(model, salted, tmp_path):
    rank(model, salted, tmp_path, FAST)
    (tmp_path / shard_name(1, 5)).write_bytes((tmp_path / shard_name(0, 5)).read_bytes())
    with pytest.raises(UserError, match="accounts for 13 of 14 images"):
        rank(model, salted, tmp_path, FAST)


@pytest.mark.parametrize("settings", [{"block": 5}, {"block": -1}, {"window": 0}, {"window": 9}, {"stride": 3}])
def test_wrong_settings_leave_the_folder_free(model, tmp_path, settings):
    with pytest.raises(UserError):
        rank(model, load_data("demo:test", 1), tmp_path, replace(FAST, **settings))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_single_readable_picture(model, tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"None of the 1 images can be read, for example .a\.jpg.: cannot identify"):
        rank(model, load_data(str(tmp_path)), tmp_path / "out", FAST)


RANK = """
import torch
from patchranking.data import load_data
from patchranking.ranking import job, shards
from patchranking.ranking.search import SearchSettings
from patchranking.towers.load import load_model

torch.set_num_threads(1)
model, data = load_model("demo"), load_data("demo:train", 24)
job._IMAGES_PER_SHARD = 2
shards._IMAGES_PER_BATCH = {"cpu": 1}
prepare_search = shards.prepare_search
shards.prepare_search = lambda *arguments: deadly(prepare_search(*arguments))

def run(folder):
    job.rank(model, data, Path(folder), SearchSettings("leave-out", block=7, stride=2))
"""


@pytest.fixture
def run(killed_forks, tmp_path):
    """Returns a function that ranks in a process of its own, killed at its n-th step, and returns the exit code."""
    with killed_forks(RANK) as ask:
        yield lambda fatal: ask(fatal, tmp_path / "killed")


def test_a_killed_job_goes_on_to_the_same_result(run, tmp_path):
    folder = tmp_path / "killed"
    finished, torn = {}, 0
    for fatal in np.random.default_rng(0).integers(1, 9, 12):
        assert run(fatal) == -signal.SIGKILL
        now = contents(folder)
        assert finished.items() <= now.items()
        finished = now
        torn += any(folder.glob("*.partial"))
        with pytest.raises(UserError, match=r"not finished|no rankings"):
            finished_manifest(folder)
    assert torn
    assert 4 <= len(finished) < 12
    assert run(0) == 0
    assert finished.items() <= contents(folder).items()
    killed = contents(folder)
    assert len(dict(iter_rankings(folder))) == 24

    shutil.rmtree(folder)
    assert run(0) == 0
    whole = contents(folder)
    assert {name: content for name, (content, _) in killed.items()} == {
        name: content for name, (content, _) in whole.items()
    }
