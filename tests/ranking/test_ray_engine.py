from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from patchranking.data import load_data
from patchranking.errors import MissingExtraError, UserError
from patchranking.ranking import job
from patchranking.ranking.job import rank
from patchranking.ranking.ray_engine import _Job
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.shards import ShardRanker
from patchranking.ranking.store import iter_rankings, write_manifest
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


def deadly(data, fatal):
    """The same images; reading one for the first time kills the process that does it."""
    marker = str(fatal)

    class Deadly(type(data)):
        def image(self, index):
            if index == 5 and not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().image(index)

    data.__class__ = Deadly
    return data


def test_a_killed_worker_changes_nothing(ray_cluster, model, pictures, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(job, "_IMAGES_PER_SHARD", 2)
    rank(model, pictures, tmp_path / "local", FAST)
    closed = Mock(wraps=ray.shutdown)
    monkeypatch.setattr(ray, "shutdown", closed)
    manifest = rank(model, deadly(pictures, tmp_path / "fatal"), tmp_path / "ray", FAST, engine="ray")
    closed.assert_called_once()
    assert (tmp_path / "fatal").exists()
    assert manifest["totals"] == {"in": 12, "ranked": 11, "skipped": 1, "left_out": 0}
    assert set(manifest["skipped"]) == {"broken.png"}
    assert len(dict(iter_rankings(tmp_path / "ray"))) == 11
    local, distributed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.parquet")} for name in ("local", "ray")
    )
    assert len(local) == 6
    assert distributed == local
