from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from patchranking.data.images import read_image
from patchranking.embedding import job, shards
from patchranking.embedding.encoder import recorded
from patchranking.embedding.job import embed_to
from patchranking.embedding.settings import EmbedSettings
from patchranking.embedding.store import MANIFEST
from patchranking.errors import UserError
from patchranking.methods.attach import attachable
from patchranking.predictor.doubt import Doubt
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule

HERE = EmbedSettings(dtype="float32", batch_size=3, workers=0)


@pytest.fixture
def run(tiny, pictures, tmp_path):
    """Returns a function that embeds the pictures in shards of four."""

    def embed(out="out", data=pictures, settings=HERE, pruner=None, **options):
        return embed_to(tiny, str(data), tmp_path / out, pruner, settings, **{"shard_size": 4, **options})

    return embed


def rows(folder):
    """Key -> vector of all that is embedded, from the files as their readers see them; and the failed, with reasons."""
    if (folder / "img_emb").is_dir():
        found, failed = {}, {}
        for path in sorted((folder / "img_emb").iterdir()):
            number = path.stem.rpartition("_")[2]
            keys = pq.read_table(folder / f"metadata/metadata_{number}.parquet")["image_path"].to_pylist()
            found |= dict(zip(keys, np.load(path), strict=True))
            bad = pq.read_table(folder / f"failed/failed_{number}.parquet").to_pydict()
            failed |= dict(zip(bad["key"], bad["error"], strict=True))
        return found, failed
    table = pq.read_table(folder).to_pylist()
    found = {row["key"]: np.array(row["embedding"]) for row in table if row["status"] == "ok"}
    return found, {row["key"]: row["error"] for row in table if row["status"] == "failed"}


def check(folder, expected, bad=("empty.png", "torn.png", "sub/text.jpg")):
    found, failed = rows(folder)
    assert found.keys() == expected.keys()
    assert set(failed) == set(bad)
    for key, vector in found.items():
        np.testing.assert_allclose(vector, expected[key], atol=1e-5)


@pytest.mark.parametrize("form", ["parquet", "npy"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_has_its_vector_or_a_reason(run, expected, tmp_path, form, workers):
    manifest = run(form=form, settings=replace(HERE, workers=workers))
    check(tmp_path / "out", expected)
    assert manifest["totals"] == {"in": 11, "out": 8, "failed": 3}
    assert manifest["failed"]["empty file"] == 1
    assert sum(manifest["failed"].values()) == 3
    assert json.loads((tmp_path / "out" / MANIFEST).read_text()) == manifest
    assert (manifest["precision"], manifest["features"], manifest["keep"]) == ("fp32", 24, 1.0)
    assert manifest["versions"]["torch"]


def test_workers_change_no_byte(run, tmp_path, contents):
    for workers in (0, 1, 2):
        run(f"{workers}", settings=replace(HERE, workers=workers))
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_shards_that_are_lost_are_made_again_and_no_others(run, tmp_path, contents, monkeypatch, form):
    whole = run(form=form)
    before = contents(tmp_path / "out")
    lost, *rest = sorted(
        path for path in (tmp_path / "out").rglob("*0000?.*") if path.parent.name in ("out", "img_emb")
    )
    assert len(rest) == 2
    times = [path.stat().st_mtime_ns for path in rest]
    lost.unlink()
    (lost.parent / f"{lost.name}.0.partial").write_bytes(b"half")
    bars = []

    class Bar(tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append(self)

    monkeypatch.setattr(job, "tqdm", Bar)
    assert run(form=form) == whole
    assert contents(tmp_path / "out") == before
    assert [path.stat().st_mtime_ns for path in rest] == times
    run(form=form)
    assert [(bar.desc, bar.initial, bar.n, bar.total) for bar in bars if bar.desc != "list"] == [("embed", 7, 11, 11)]


def test_new_files_are_appended(run, pictures, expected, tmp_path, contents):
    last = (pictures / "good2.png").rename(tmp_path / "later.png")
    run()
    before = contents(tmp_path / "out")
    last.rename(pictures / "good2.png")
    assert run()["totals"] == {"in": 11, "out": 8, "failed": 3}
    check(tmp_path / "out", expected)
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before if name != MANIFEST} == {
        n: c for n, c in before.items() if n != MANIFEST
    }
    assert {"shard-00003.parquet", "_list/list-00001.parquet"} <= set(after) - set(before)


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_retry_takes_what_failed_and_nothing_else(run, pictures, expected, tmp_path, contents, monkeypatch, form):
    run(form=form)
    before = contents(tmp_path / "out")
    assert run(form=form, retry="failed")["totals"]["failed"] == 3
    assert contents(tmp_path / "out") == before
    shutil.copy(pictures / "good4.png", pictures / "torn.png")
    Image.new("RGB", (9, 9)).save(pictures / "new.png")
    seen = []
    decode = shards.decoded
    monkeypatch.setattr(shards, "decoded", lambda *a: (seen.append(batch.keys) or batch for batch in decode(*a)))
    manifest = run(form=form, retry="failed")
    assert manifest["totals"] == {"in": 11, "out": 9, "failed": 2}
    assert sorted(key for keys in seen for key in keys if key) == ["empty.png", "sub/text.jpg", "torn.png"]
    check(tmp_path / "out", expected | {"torn.png": expected["good4.png"]}, ("empty.png", "sub/text.jpg"))
    monkeypatch.undo()
    assert run(form=form)["totals"]["in"] == 12


def test_a_repaired_picture_has_the_vector_that_it_would_have_had(run, pictures, tmp_path, contents):
    good = (pictures / "good4.png").read_bytes()
    run("whole")
    (pictures / "good4.png").write_bytes(b"")
    run()
    (pictures / "good4.png").write_bytes(good)
    run(retry="failed")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_retry_needs_a_run_that_has_finished(run, tmp_path):
    with pytest.raises(UserError, match="without --retry"):
        run(retry="failed")
    run()
    (tmp_path / "out/shard-00001.parquet").unlink()
    with pytest.raises(UserError, match="not finished"):
        run(retry="failed")


CHANGES = {
    "precision": {"settings": replace(HERE, precision="bf16")},
    "normalize": {"settings": replace(HERE, normalize=True)},
    "dtype": {"settings": replace(HERE, dtype="float16")},
    "format": {"form": "npy"},
    "pruner": {"pruner": attachable("cls-attention")},
}


@pytest.mark.parametrize("change", [*CHANGES, "weights", "preprocessing", "data"])
def test_a_folder_is_for_vectors_of_one_kind(run, tiny, pictures, tmp_path, contents, change):
    run()
    before = contents(tmp_path / "out")
    options = CHANGES.get(change, {})
    if change == "weights":
        tiny.tower.identity()[0].mul_(2)
    elif change == "preprocessing":
        tiny.std = (0.1, 0.1, 0.1)
    elif change == "data":
        options = {"data": pictures / "sub"}
    words = "fingerprint: another" if change == "weights" else f"{change}: "
    with pytest.raises(UserError, match=rf"holds vectors of another kind \({words}"):
        run(**options)
    assert contents(tmp_path / "out") == before


def test_another_keep_rate_or_fit_is_another_kind(run, tiny):
    pruner = Pruner.unfitted(tiny.tower, "tiny", Schedule({1: 0.75, 3: 0.5}))
    assert run(pruner=pruner)["keep"] == 0.5
    with pytest.raises(UserError, match=r"keep: 0\.5, not 0\.4"):
        run(pruner=pruner, settings=replace(HERE, keep=0.4))
    next(pruner.parameters()).data.add_(1)
    with pytest.raises(UserError, match="pruner: another"):
        run(pruner=pruner)


def test_workers_batches_and_shards_may_change_on_the_way(run, pictures, expected, tmp_path):
    run(limit=5)
    run(settings=replace(HERE, batch_size=2, workers=1), shard_size=3)
    check(tmp_path / "out", expected)


def test_the_limit_takes_the_first_and_may_grow(run, tmp_path):
    assert run(limit=5)["totals"]["in"] == 5
    assert run(limit=5)["totals"]["in"] == 5
    assert run(limit=7)["totals"]["in"] == 7
    assert run()["totals"]["in"] == 11
    keys = pq.read_table(tmp_path / "out")["key"].to_pylist()
    assert keys == sorted(keys, key=lambda key: key.split("/"))


def test_images_named_twice_are_there_twice(run, pictures, tmp_path):
    (pictures / "list.txt").write_text("good0.png\ngood2.png\ngood0.png\n")
    assert run(data=pictures / "list.txt")["totals"]["in"] == 3
    assert run(data=pictures / "list.txt")["totals"]["in"] == 3
    assert pq.read_table(tmp_path / "out")["key"].to_pylist() == ["good0.png", "good2.png", "good0.png"]


def test_nothing_to_embed_is_said_and_leaves_the_folder_free(run, pictures, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none/a.txt").touch()
    with pytest.raises(UserError, match=r"no pictures in '.*none'; 1 left out: '\.txt' is no suffix"):
        run(data=tmp_path / "none")
    assert run(settings=replace(HERE, normalize=True))["totals"]["in"] == 11
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "none/a.png").touch()
    with pytest.raises(UserError, match="None of the 1 images can be embedded, for example: empty file"):
        run(data=tmp_path / "none")


def test_folders_of_others_are_left_alone(run, tmp_path):
    run()
    (tmp_path / "out" / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        run()
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(UserError, match="without a manifest"):
        run()


def test_shards_that_hold_too_little_are_found_out(run, tmp_path):
    run()
    shutil.copy(tmp_path / "out/shard-00002.parquet", tmp_path / "out/shard-00001.parquet")
    with pytest.raises(UserError, match="accounts for 10 of 11"):
        run()


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_space(run, tmp_path, contents, form):
    """The system's own limit on the size of files stands for the disk: lists and accounts fit, then shards do not."""
    whole = run("whole", form=form)
    sizes = sorted(len(content) for content in contents(tmp_path / "whole").values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (100, *sizes[1:-1]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            with pytest.raises(UserError, match=r"cannot be written to.*File too large.*goes on"):
                run(form=form)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list((tmp_path / "out").rglob("*.partial")) == []
    assert run(form=form) == whole
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


HOLD = """
import sys
from pathlib import Path
from patchranking.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_into_one_folder_is_refused(run, tmp_path, contents):
    run(limit=5)
    before = contents(tmp_path / "out")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out/_lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="Another run is writing into"):
            run()
        other.stdin.close()
    assert contents(tmp_path / "out") == before
    assert run()["totals"]["in"] == 11


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_fallback_says_which_images_ran_densely(run, tiny, pictures, expected, tmp_path, form):
    pruner = Pruner.unfitted(tiny.tower, "tiny", Schedule({1: 0.3}))
    pruner.doubt = Doubt(24)
    pruner.doubt.weight.copy_(torch.randn_like(pruner.doubt.weight))
    pruner.doubt.weight[:5] = torch.tensor([-2.0, 0, 0, 0, 0])
    pixels = {key: tiny.preprocess(read_image(pictures / key))[None] for key in expected}
    errors = {key: pruner.encode(tiny.model, one).errors.item() for key, one in pixels.items()}
    bound = float(np.mean(sorted(errors.values())[3:5]))
    own = replace(HERE, fallback=bound)
    manifest = run(settings=own, pruner=pruner, form=form)
    assert manifest["totals"] == {"in": 11, "out": 8, "failed": 3, "dense": 4}
    assert manifest["fallback"] == bound
    found, _ = rows(tmp_path / "out")
    for key, vector in found.items():
        near = expected[key] if errors[key] > bound else pruner.encode(tiny.model, pixels[key]).features[0].numpy()
        np.testing.assert_allclose(vector, near, atol=1e-5)
    tables = [tmp_path / "out"] if form == "parquet" else [*(tmp_path / "out/metadata").iterdir()]
    told = [row for path in tables for row in pq.read_table(path).to_pylist() if row.get("status") != "failed"]
    key = "key" if form == "parquet" else "image_path"
    assert {row[key] for row in told if row["ran_densely"]} == {key for key, error in errors.items() if error > bound}
    assert run(settings=own, pruner=pruner, form=form) == manifest
    doubtful = max(errors, key=errors.__getitem__)
    shutil.copy(pictures / doubtful, pictures / "torn.png")
    manifest = run(settings=own, pruner=pruner, form=form, retry="failed")
    assert manifest["totals"] == {"in": 11, "out": 9, "failed": 2, "dense": 5}
    again = recorded(tiny, tmp_path / "out", manifest)
    np.testing.assert_allclose(again(pixels[doubtful])[0].numpy(), expected[doubtful], atol=1e-5)
    with pytest.raises(UserError, match="holds vectors of another kind"):
        run(settings=replace(own, fallback=None), pruner=pruner, form=form)


def test_a_fallback_needs_a_pruner_that_estimates(run, tiny):
    own = replace(HERE, fallback=0.1)
    for given in (None, attachable("tome")):
        with pytest.raises(UserError, match="Only a fitted pruner estimates its errors"):
            run(settings=own, pruner=given)
    with pytest.raises(UserError, match="no estimate of its errors"):
        run(settings=own, pruner=Pruner.unfitted(tiny.tower, "tiny", Schedule({1: 0.3})))
    with pytest.raises(UserError, match="0 or more"):
        replace(HERE, fallback=-0.1)
