from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from patchranking.data import load_data
from patchranking.errors import MissingExtraError, UserError
from patchranking.ranking import job, ray_engine
from patchranking.ranking.job import rank
from patchranking.ranking.ray_engine import _Job
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.shards import ShardRanker
from patchranking.ranking.store import write_manifest
from patchranking.towers.load import load_model

FAST = SearchSettings(block=6)


@pytest.fixture(scope="module")
def model():
    return load_model("demo")


@pytest.fixture
def pictures(tmp_path):
    """Eleven scenes as files, and a file that is no picture."""
    root = tmp_path / "pictures"
    root.mkdir()
    scenes = load_data("demo:test", 11)
    for index in range(11):
        scenes.image(index).save(root / f"{index:02d}.png")
    (root / "broken.png").write_text("no picture")
    return load_data(str(root))


def test_without_ray(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'patchranking\[ray\]'"):
        rank(model, pictures, tmp_path / "out", FAST, engine="ray")


@pytest.fixture
def task(model, pictures, tmp_path):
    """What a worker is sent."""
    write_manifest(tmp_path, {})
    ranker = ShardRanker(model, pictures, FAST, tmp_path, 2)
    return _Job("demo", "cpu", pictures, FAST, ranker.record, tmp_path, 2)


def test_a_worker_ranks_shards(task, tmp_path):
    rank_shard = task.start()
    assert [rank_shard(shard) for shard in (1, 0)] == [6, 6]
    assert len(list(tmp_path.glob("*.parquet"))) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "tiny"}, "could not load the model. Unknown model 'tiny'"),
        ({"record": {}}, "other weights for 'demo'"),
        ({"folder": Path("elsewhere")}, "folder that all nodes share"),
    ],
)
def test_a_worker_says_what_it_lacks_in_a_sentence(task, changes, words):
    with pytest.raises(UserError, match=words):
        replace(task, **changes).start()


def test_what_a_cluster_ranks_is_what_is_ranked_here(model, pictures, tmp_path, monkeypatch):
    """Workers get the job pickled, and shards in any order; a real cluster runs in the tests of embed."""
    pickle = pytest.importorskip("ray.cloudpickle", exc_type=ImportError)

    def handed_out(job, shards, device):
        assert device == model.tower.device
        do = pickle.loads(pickle.dumps(job)).start()
        yield from map(do, reversed(shards))

    monkeypatch.setattr(ray_engine, "on_ray", handed_out)
    monkeypatch.setattr(job, "_IMAGES_PER_SHARD", 2)
    rank(model, pictures, tmp_path / "local", FAST)
    manifest = rank(model, pictures, tmp_path / "ray", FAST, engine="ray")
    assert manifest["totals"] == {"in": 12, "ranked": 11, "skipped": 1, "left_out": 0}
    assert set(manifest["skipped"]) == {"broken.png"}
    local, distributed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.parquet")} for name in ("local", "ray")
    )
    assert len(local) == 6
    assert distributed == local
