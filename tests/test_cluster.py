from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from patchranking import cluster
from patchranking.cluster import _Start, _Worker
from patchranking.errors import UserError


@dataclass(frozen=True)
class Counting:
    """Shard n has n + 2 images; number 3 cannot be done."""

    started: list

    def start(self):
        self.started.append((torch.get_num_threads(), os.getcwd()))

        def do(shard):
            if shard == 3:
                raise UserError("Three is too many.")
            return shard + 2

        return do


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    job = Counting([])
    monkeypatch.setattr(cluster, "_receive", lambda _: _Start(job, torch.get_num_threads(), tmp_path))
    return _Worker(None), job


def test_a_worker_starts_once_and_computes_as_the_driver_does(worker, tmp_path):
    do, job = worker
    assert [do({"item": shard}) for shard in (1, 0)] == [{"images": 3, "problem": ""}, {"images": 2, "problem": ""}]
    assert job.started == [(torch.get_num_threads(), str(tmp_path))]


def test_what_the_user_can_mend_comes_back_as_a_sentence(worker):
    do, _ = worker
    assert do({"item": 3}) == {"images": 0, "problem": "Three is too many."}


def test_no_shards_need_no_cluster():
    assert list(cluster.on_ray(Counting([]), [], torch.device("cpu"))) == []


class _Full:
    def put(self, _):
        raise TypeError("cannot pickle")


def test_what_cannot_be_sent_is_said():
    with pytest.raises(UserError, match="cannot be sent to Ray workers: choose --engine local"):
        cluster._send(_Full(), _Start(Counting([]), 1, Path()))
