"""Hands the shards of a job to the workers of a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from patchranking.errors import UserError, reason
from patchranking.extras import import_extra

__all__ = ["Job", "on_ray", "unseen"]


class Job(Protocol):
    """What the workers of a cluster do; it is sent to each of them."""

    def start(self) -> Callable[[int], int]:
        """Loads what is needed, once in each worker; returns what does a shard and says how many images it had."""


def on_ray(job: Job, shards: Sequence[int], device: torch.device) -> Iterator[int]:
    """Does shards on Ray Data: one actor per GPU, or one for as many CPUs as torch uses threads here.

    Joins the cluster named by ``RAY_ADDRESS`` or running on this machine, else starts one here and stops it in the end.
    Each actor starts the job once and writes its shards itself. Ray replaces an actor that dies and repeats its shard.
    Actors compute with as many threads as torch uses here, as far as the nodes have as many CPUs.

    Args:
        job: The job.
        shards: Which shards.
        device: Where the actors compute: on CPUs, or on GPUs.

    Yields:
        Numbers of images done, shard by shard, in any order.

    Raises:
        UserError: If Ray is not installed, its cluster cannot be reached or lacks the device, the images cannot be sent
            to workers, or a worker finds what the user can mend.
    """
    if not shards:
        return
    ray = _import_ray()
    with _cluster(ray):
        threads = min(torch.get_num_threads(), max(1, int(max(_resources(ray, "CPU")))))
        kind, need = ("GPU", 1) if device.type == "cuda" else ("CPU", threads)
        workers = sum(int(amount // need) for amount in _resources(ray, kind))
        if not workers:
            raise UserError(f"The Ray cluster has no {kind}: add a node that has one, or choose another --device.")
        dataset = ray.data.from_items(list(shards), override_num_blocks=len(shards))
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        dataset.context.execution_no_progress_timeout_s = -1  # a shard may take hours
        done = dataset.map(
            _Worker,
            fn_constructor_args=(_send(ray, _Start(job, threads, Path.cwd())),),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1),
            **{f"num_{kind.lower()}s": need},
        )
        for row in done.iter_rows():
            if row["problem"]:
                raise UserError(row["problem"])
            yield row["images"]


def unseen(folder: Path) -> UserError:
    """The error when a worker finds nothing in the folder of a job."""
    return UserError(f"A Ray worker does not see '{folder}': give a folder that all nodes share for --out.")


@dataclass(frozen=True)
class _Start:
    """All a worker needs to know."""

    job: Job
    threads: int
    working_folder: Path

    def __call__(self) -> Callable[[int], int]:
        """Makes this process compute as the driver does, and starts the job."""
        torch.set_num_threads(self.threads)
        with suppress(OSError):
            os.chdir(self.working_folder)
        return self.job.start()


class _Worker:
    """Lives in an actor: starts the job for its first shard and keeps it."""

    def __init__(self, start: Any) -> None:
        self._start = start
        self._do: Callable[[int], int] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Does shard ``row["item"]``; what the user can mend comes back as a sentence, which outlives the actor."""
        try:
            if self._do is None:
                self._do = _receive(self._start)()
            return {"images": self._do(int(row["item"])), "problem": ""}
        except UserError as error:
            return {"images": 0, "problem": str(error)}


def _import_ray() -> ModuleType:
    ray, _ = (import_extra(module, "The ray engine needs Ray", "ray") for module in ("ray", "ray.data"))
    return ray


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
        raise UserError(
            "The Ray cluster cannot be reached: start it, or unset RAY_ADDRESS to use this machine."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _resources(ray: ModuleType, kind: str) -> list[float]:
    """How many CPUs or GPUs each node has."""
    return [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]


def _send(ray: ModuleType, start: _Start) -> Any:
    try:
        return ray.put(start)
    except TypeError as error:
        raise UserError("These images cannot be sent to Ray workers: choose --engine local.") from error


def _receive(reference: Any) -> _Start:
    try:
        start: _Start = _import_ray().get(reference)
        return start
    except Exception as error:
        raise UserError(f"A Ray worker could not open the images: {reason(error)}") from error
