from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.ranking import job
from patchranking.ranking.job import SearchSettings, rank_dataset
from patchranking.ranking.search import leave_out
from patchranking.ranking.store import read_rankings, shard_name
from patchranking.towers.load import LoadedModel, load_model

FAST = SearchSettings(block=3, window=2, stride=2)


@pytest.fixture
def model(tower):
    def preprocess(image):
        return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) / 255

    return LoadedModel("tiny", tower.module, tower, preprocess, None, 1.0, (0, 0, 0), (1, 1, 1))


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
    rank_dataset(model, data, tmp_path, FAST)
    rankings = read_rankings(tmp_path)
    expected = leave_out(model.tower, torch.stack([model.preprocess(data.image(i)) for i in range(4)]), 3, 2, 2)
    assert list(rankings.importance) == data.keys
    stored = np.stack([rankings.importance[key] for key in data.keys])
    np.testing.assert_allclose(stored, expected.importance.numpy(), rtol=1e-4, atol=1e-7)
    assert rankings.settings["model"] == "tiny"
    assert {key: rankings.settings[key] for key in ("block", "window", "stride")} == {
        "block": 3,
        "window": 2,
        "stride": 2,
    }


def test_every_image_of_a_salted_folder_is_accounted_for(model, salted, tmp_path):
    manifest = rank_dataset(model, salted, tmp_path, FAST)
    assert manifest["totals"] == {"in": 14, "ranked": 11, "skipped": 3}
    rankings = read_rankings(tmp_path)
    assert set(rankings.skipped) == {"empty.png", "text.jpg", "torn.jpg"}
    assert rankings.skipped == manifest["skipped"]
    assert set(rankings.importance) | set(rankings.skipped) == set(salted.keys)
    assert all(np.isfinite(row).all() for row in rankings.importance.values())
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest


def test_an_image_the_model_cannot_preprocess_is_skipped(model, salted, tmp_path):
    def picky(image):
        if min(image.size) < 2:
            raise ValueError("too small")
        return model.preprocess(image)

    manifest = rank_dataset(replace(model, preprocess=picky), salted, tmp_path, FAST)
    assert manifest["totals"] == {"in": 14, "ranked": 9, "skipped": 5}
    assert "too small" in manifest["skipped"]["one.png"]
    assert "1 x 300" in manifest["skipped"]["thin.png"]


def test_finished_shards_are_not_made_again(model, salted, tmp_path):
    whole = rank_dataset(model, salted, tmp_path, FAST)
    before = contents(tmp_path)
    assert len(before) == 5
    lost = shard_name(1, 5)
    (tmp_path / lost).unlink()
    (tmp_path / f"{lost}.partial").write_bytes(b"half a shard")
    (tmp_path / "manifest.json.partial").write_text("{")
    assert rank_dataset(model, salted, tmp_path, FAST) == whole
    after = contents(tmp_path)
    assert after[lost][0] == before[lost][0]
    del before[lost], after[lost]
    assert after == before
    assert set(read_rankings(tmp_path).importance) | set(whole["skipped"]) == set(salted.keys)


def test_ranking_again_changes_nothing(model, tmp_path, monkeypatch):
    data = load_data("demo:test", 4)
    rank_dataset(model, data, tmp_path, FAST)
    before = contents(tmp_path)
    monkeypatch.setattr(job, "leave_out", None)
    rank_dataset(model, data, tmp_path, FAST)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("change", ["settings", "images", "length", "weights"])
def test_a_folder_is_for_one_job(model, tmp_path, change):
    rank_dataset(model, load_data("demo:test", 2), tmp_path, FAST)
    before = contents(tmp_path)
    data, settings = load_data("demo:test", 2), FAST
    match change:
        case "settings":
            settings = replace(FAST, stride=1)
        case "images":
            data = load_data("demo:val", 2)
        case "length":
            data = load_data("demo:test", 3)
        case "weights":
            model.tower.identity()[0].mul_(2)
    with pytest.raises(UserError, match="choose another folder"):
        rank_dataset(model, data, tmp_path, settings)
    assert contents(tmp_path) == before


def test_shards_without_a_manifest_are_not_adopted(model, tmp_path):
    data = load_data("demo:test", 2)
    rank_dataset(model, data, tmp_path, FAST)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match="without a manifest"):
        rank_dataset(model, data, tmp_path, FAST)


@pytest.mark.parametrize("settings", [{"block": 5}, {"block": -1}, {"window": 0}, {"window": 9}, {"stride": 3}])
def test_wrong_settings_leave_the_folder_free(model, tmp_path, settings):
    with pytest.raises(UserError):
        rank_dataset(model, load_data("demo:test", 1), tmp_path, replace(FAST, **settings))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_single_readable_picture(model, tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"None of the 1 images could be read, for example: .*a\.jpg"):
        rank_dataset(model, load_data(str(tmp_path)), tmp_path / "out", FAST)


KILLED = """
import os, signal, sys
from pathlib import Path
import patchranking
import torch
from patchranking.data import load_data
from patchranking.ranking import job, store
from patchranking.towers.load import load_model

torch.set_num_threads(1)
model = load_model("demo")
job._IMAGES_PER_SHARD = 2
steps, fatal = 0, 0

def deadly(function, last_breath=lambda *_: None):
    def step(*arguments, **options):
        global steps
        steps += 1
        if steps == fatal:
            last_breath(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return step

job.leave_out = deadly(job.leave_out)
store.pq.write_table = deadly(store.pq.write_table, lambda table, path: path.write_bytes(b"PAR1 half a shard"))
os.replace = deadly(os.replace)
for line in sys.stdin:
    fatal = int(line)
    process = os.fork()
    if process == 0:
        job.rank_dataset(model, load_data("demo:train", 12), Path(sys.argv[1]), job.SearchSettings(block=6, stride=2))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture
def run(tmp_path):
    """Returns a function that ranks in a process of its own, killed at its n-th step, and returns the exit code."""
    environment = os.environ | {"PYTHONPATH": str(Path(job.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as server:

        def ask(fatal):
            server.stdin.write(f"{fatal}\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield ask


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_killed_job_goes_on_to_the_same_result(run, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    finished = {}
    for fatal in [*np.random.default_rng(3).integers(2, 6, 4), 3]:
        assert run(fatal) == -signal.SIGKILL
        now = contents(folder)
        assert finished.items() <= now.items()
        finished = now
        with pytest.raises(UserError, match="not finished"):
            read_rankings(folder)
    assert 0 < len(finished) < 6
    assert list(folder.glob("*.partial"))
    assert run(0) == 0
    assert finished.items() <= contents(folder).items()

    monkeypatch.setattr(job, "_IMAGES_PER_SHARD", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = SearchSettings(block=6, stride=2)
        rank_dataset(load_model("demo"), load_data("demo:train", 12), tmp_path / "whole", settings)
    finally:
        torch.set_num_threads(threads)
    killed, whole = read_rankings(folder), read_rankings(tmp_path / "whole")
    assert list(killed.importance) == list(whole.importance)
    assert len(whole.importance) == 12
    for key, row in whole.importance.items():
        assert np.array_equal(killed.importance[key], row)
    assert not list(folder.glob("*.partial"))
