from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest

from patchranking.embedding.store import MANIFEST

EMBED = """
import torch
from patchranking.data import load_data
from patchranking.embedding import job, pipeline, store
from patchranking.embedding.batches import embedded
from patchranking.embedding.settings import EmbedSettings
from patchranking.towers.load import load_model

torch.set_num_threads(1)
model, settings = load_model("demo"), EmbedSettings(batch_size=2, workers=0)
list(embedded(model, load_data("demo:train", 2), None, settings))  # what is done once is not done in every fork
pipeline._arrived = deadly(pipeline._arrived)
store.np.save = deadly(store.np.save, lambda file, vectors: file.write(b"NUMPY half"))

def run(folder, form):
    job.embed_to(model, "demo:train", Path(folder), None, settings, form, 4, limit=14)
"""


@pytest.fixture(scope="module")
def server(killed_forks):
    """Embeds, killed at a fatal step, into a folder and a format, and returns how that ended."""
    with killed_forks(EMBED) as ask:
        yield ask


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, contents, server, form):
    finished, kills = {}, 0
    for fatal in np.random.default_rng(0).integers(1, 12, 7):
        code = server(fatal, tmp_path / "killed", form)
        now = {
            name: content
            for name, content in contents(tmp_path / "killed").items()
            if not name.endswith("partial") and name != MANIFEST
        }
        shards = {name for name in now if name.startswith(("shard", "img_emb"))}
        assert finished.items() <= now.items()
        finished = {name: now[name] for name in shards}
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 4
    assert server(0, tmp_path / "killed", form) == 0
    killed = contents(tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed")
    assert server(0, tmp_path / "killed", form) == 0
    assert contents(tmp_path / "killed") == killed
    assert len([name for name in killed if name.startswith(("shard", "img_emb"))]) == 4
