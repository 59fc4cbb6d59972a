from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from patchranking.data.streams import load_stream
from patchranking.embedding.job import embed_to
from patchranking.embedding.ray_engine import _Job
from patchranking.embedding.settings import EmbedSettings
from patchranking.errors import MissingExtraError, UserError
from patchranking.methods.attach import attachable
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers.load import load_model

HERE = EmbedSettings(batch_size=3, workers=0)


@pytest.fixture(scope="module")
def model():
    return load_model("demo")


def test_without_ray(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'patchranking\[ray\]'"):
        embed_to(model, str(pictures), tmp_path / "out", None, HERE, engine="ray")


def test_an_unknown_engine(model, pictures, tmp_path):
    with pytest.raises(UserError, match="Unknown engine 'spark': choose from local, ray"):
        embed_to(model, str(pictures), tmp_path / "out", engine="spark")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "tiny"}, "could not load the model. Unknown model 'tiny'"),
        ({"folder": Path("elsewhere")}, "folder that all nodes share"),
    ],
)
def test_a_worker_says_what_it_lacks_in_a_sentence(pictures, tmp_path, changes, words):
    (tmp_path / "_manifest.json").write_text("{}")
    job = _Job("demo", "cpu", load_stream(str(pictures)), HERE, 3, False, tmp_path)
    with pytest.raises(UserError, match=words):
        replace(job, **changes).start()


def deadly(data, fatal):
    """The same images; reading one for the first time kills the process that does it."""
    marker, stream = str(fatal), load_stream(str(data))

    class Deadly(type(stream)):
        def content(self, place):
            if place.endswith(b"good3.png") and not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().content(place)

    stream.__class__ = Deadly
    return stream


def test_a_killed_worker_changes_no_byte(ray_cluster, model, pictures, tmp_path, contents, monkeypatch):
    import ray

    closed = Mock(wraps=ray.shutdown)
    monkeypatch.setattr(ray, "shutdown", closed)
    settings = {"settings": replace(HERE, keep=0.4), "shard_size": 4}
    pruner = Pruner.unfitted(model.tower, "demo", Schedule({3: 0.5}))
    embed_to(model, str(pictures), tmp_path / "local", pruner, **settings)
    stream = deadly(pictures, tmp_path / "fatal")
    manifest = embed_to(model, stream, tmp_path / "ray", pruner, engine="ray", **settings)
    closed.assert_called_once()
    assert (tmp_path / "fatal").exists()
    assert manifest["totals"] == {"in": 11, "out": 8, "failed": 3}
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_worker_does_what_the_driver_would(model, pictures, tmp_path, contents, form):
    """What failed, too, once it can be read."""
    settings = {"settings": HERE, "form": form, "shard_size": 4, "pruner": attachable("cls-attention")}
    folders = [tmp_path / "local", tmp_path / "worker"]
    for folder in folders:
        embed_to(model, str(pictures), folder, **settings)
    (pictures / "torn.png").write_bytes((pictures / "good0.png").read_bytes())
    embed_to(model, str(pictures), folders[0], retry="failed", **settings)
    embed = _Job("demo", "cpu", load_stream(str(pictures)), HERE, 3, True, folders[1]).start()
    assert [embed(shard) for shard in range(3)] == [1, 0, 2]
    local, worker = map(contents, folders)
    assert {name for name in local if local[name] != worker[name]} == {"_manifest.json"}
