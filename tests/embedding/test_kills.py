from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from patchranking.embedding import job
from patchranking.embedding.store import MANIFEST

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from patchranking.data import load_data
from patchranking.embedding import job, pipeline, store
from patchranking.embedding.batches import embedded
from patchranking.embedding.settings import EmbedSettings
from patchranking.towers.load import load_model

torch.set_num_threads(1)
model, settings = load_model("demo"), EmbedSettings(batch_size=2, workers=0)
list(embedded(model, load_data("demo:train", 2), None, settings))  # what is done once is not done in every fork
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

pipeline._arrived = deadly(pipeline._arrived)
store.pq.write_table = deadly(store.pq.write_table, lambda table, path: path.write_bytes(b"PAR1 half a shard"))
store.np.save = deadly(store.np.save, lambda file, vectors: file.write(b"NUMPY half"))
os.replace = deadly(os.replace)
for line in sys.stdin:
    fatal, folder, form = line.split()
    fatal = int(fatal)
    process = os.fork()
    if process == 0:
        job.embed_to(model, "demo:train", Path(folder), None, settings, form, 4, limit=14)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server():
    """Returns a function that embeds in a process of its own, killed at a fatal step, and returns how that ended."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork and SIGKILL")
    environment = os.environ | {"PYTHONPATH": str(Path(job.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", KILLED], env=environment, text=True, **pipes) as process:

        def ask(fatal, folder, form):
            process.stdin.write(f"{fatal} {folder} {form}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

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
