"""Ranks the shards of a job on a Ray cluster."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from patchranking.data import ImageData
from patchranking.data.images import reason
from patchranking.errors import UserError
from patchranking.extras import import_extra
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.shards import ShardRanker
from patchranking.ranking.store import read_manifest
from patchranking.towers.load import load_model

__all__ = ["rank_on_ray"]


def rank_on_ray(ranker: ShardRanker, shards: Sequence[int]) -> Iterator[int]:
    """Ranks shards on Ray Data: one actor per GPU, or one for as many CPUs as torch uses threads here.

    Joins the cluster named by ``RAY_ADDRESS`` or running on this machine, else starts one here and stops it in the end.
    All nodes see the images, local models and the folder of the rankings under the same paths. Each actor loads the
    model once, by its name, and writes its shards itself. Ray replaces an actor that dies and repeats its shard.

    On CPUs of the same kind the rankings equal those of the local engine bit for bit: the same shards make the same
    batches, and an actor computes with as many threads as torch uses here, as far as the nodes have as many CPUs.

    Args:
        ranker: The job.
        shards: Which shards.

    Yields:
        Numbers of images done, shard by shard.

    Raises:
        UserError: If Ray is not installed, its cluster cannot be reached or lacks the device, or a worker cannot open
            the images, load the model or see the folder.
    """
    if not shards:
        return
    ray = _import_ray()
    with _cluster(ray):
        gpu = ranker.model.tower.device.type == "cuda"
        threads = min(torch.get_num_threads(), max(1, int(max(_resources(ray, "CPU")))))
        kind, need = ("GPU", 1) if gpu else ("CPU", threads)
        workers = sum(int(amount // need) for amount in _resources(ray, kind))
        if not workers:
            raise UserError(f"The Ray cluster has no {kind}: add a node that has one, or choose another --device.")
        job = _Job(
            model=ranker.model.name,
            device=ranker.model.tower.device.type,
            threads=threads,
            data=ranker.data,
            settings=ranker.settings,
            record=ranker.record,
            folder=ranker.folder.resolve(),
            count=ranker.count,
            working_folder=Path.cwd(),
        )
        dataset = ray.data.from_items(list(shards), override_num_blocks=len(shards))
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        dataset.context.execution_no_progress_timeout_s = -1  # a shard may take hours
        done = dataset.map(
            _Worker,
            fn_constructor_args=(_send(ray, job),),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1),
            **{f"num_{kind.lower()}s": need},
        )
        for row in done.iter_rows():
            if row["problem"]:
                raise UserError(row["problem"])
            yield row["images"]


@dataclass(frozen=True)
class _Job:
    """All a worker needs to know."""

    model: str
    device: str
    threads: int
    data: ImageData
    settings: SearchSettings
    record: dict[str, Any]
    folder: Path
    count: int
    working_folder: Path

    def start(self) -> ShardRanker:
        """Loads the model and makes this process compute as the driver does."""
        torch.set_num_threads(self.threads)
        with suppress(OSError):
            os.chdir(self.working_folder)
        if read_manifest(self.folder) is None:
            raise UserError(f"A Ray worker does not see '{self.folder}': give a folder that all nodes share for --out.")
        try:
            model = load_model(self.model, self.device)
        except UserError as error:
            raise UserError(f"A Ray worker could not load the model. {error}") from error
        ranker = ShardRanker(model, self.data, self.settings, self.folder, self.count)
        if ranker.record != self.record:
            raise UserError(f"A Ray worker found other weights for '{self.model}': give all nodes the same.")
        return ranker


class _Worker:
    """Lives in an actor: loads the model for its first shard and keeps it."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self._ranker: ShardRanker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Ranks shard ``row["item"]``; what the user can mend comes back as a sentence, which outlives the actor."""
        try:
            if self._ranker is None:
                self._ranker = _receive(self._job).start()
            return {"images": sum(self._ranker.rank(int(row["item"]))), "problem": ""}
        except UserError as error:
            return {"images": 0, "problem": str(error)}


def _import_ray() -> ModuleType:
    import_extra("ray.data", "The ray engine needs Ray", "ray")
    return importlib.import_module("ray")


@contextmanager
def _cluster(ray: ModuleType) -> Iterator[None]:
    """Joins or starts a cluster, quietly, and leaves or stops it; one that the caller has joined stays joined."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise UserError("The Ray cluster cannot be reached: start it, or unset RAY_ADDRESS to rank here.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _resources(ray: ModuleType, kind: str) -> list[float]:
    """How many CPUs or GPUs each node has."""
    return [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]


def _send(ray: ModuleType, job: _Job) -> Any:
    try:
        return ray.put(job)
    except TypeError as error:
        raise UserError(f"The images of '{job.data.name}' cannot be sent to Ray workers: rank locally.") from error


def _receive(reference: Any) -> _Job:
    try:
        return _import_ray().get(reference)
    except Exception as error:
        raise UserError(f"A Ray worker could not open the images: {reason(error)}") from error
