"""Pictures are decoded ahead of the model, in order, and vectors come out."""

from __future__ import annotations

import os
import pickle
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from patchranking.data.streams import ImageStream
from patchranking.embedding.decode import Decoded, Decoder, Work, shrinks
from patchranking.embedding.encoder import Encoder
from patchranking.embedding.settings import EmbedSettings
from patchranking.embedding.store import Shard, Store
from patchranking.errors import UserError
from patchranking.exporting.model import ReadyModel

__all__ = ["Clock", "Vectors", "alive", "decoded", "decoder_of", "encoded", "written"]

_AHEAD = 2
"""Batches that every worker may be ahead."""
_MOST_WORKERS = 16


class Clock:
    """What a run waits for: seconds by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Counts the time of a ``with`` block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began

    def shares(self) -> str:
        """Shares of the time that was counted, such as ``decode 2%, model 97%, write 1%``."""
        total = sum(self.seconds.values()) or 1
        return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in sorted(self.seconds.items()))


@dataclass(frozen=True)
class Vectors:
    """A batch of vectors in the order of the entries.

    Attributes:
        shard: As in ``Work``.
        start: As in ``Work``.
        keys: ``(batch,)``.
        vectors: As they are stored, ``(batch, features)``; of no meaning where there is an error.
        sizes: Width and height, int32 ``(batch, 2)``, zero where they are unknown.
        errors: Why there is no vector, empty where there is one.
        dense: Whether the vector is the dense one, bool ``(batch,)``; None without a fallback.
    """

    shard: int
    start: int
    keys: list[str]
    vectors: np.ndarray
    sizes: np.ndarray
    errors: list[str]
    dense: np.ndarray | None = None


def decoder_of(model: ReadyModel, stream: ImageStream) -> Decoder:
    """What decodes the pictures of a stream for a model."""
    size = model.image_size
    return Decoder(stream, model.preprocess, size, shrinks(model.preprocess, size))


def decoded(decoder: Decoder, work: Iterable[Work], settings: EmbedSettings, device: torch.device) -> Iterator[Decoded]:
    """Decodes batches in worker processes, and yields them in their order.

    Args:
        decoder: Reads and preprocesses.
        work: The batches, which are listed as they are needed.
        settings: How many workers.
        device: Where the batches will go.

    Raises:
        UserError: If the workers cannot be given what they need.
    """
    workers = _workers(device) if settings.workers == "auto" else settings.workers
    given: Any = (decoder, work)  # a data set need have no more than __getitems__
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch thinks of their number
            loader: DataLoader[Any] = DataLoader(
                given[0],
                batch_sampler=given[1],
                num_workers=workers,
                collate_fn=_as_it_is,
                prefetch_factor=_AHEAD if workers else None,
                pin_memory=device.type == "cuda",
                worker_init_fn=_start_worker,
            )
            batches = iter(loader)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise UserError(
            "The preprocessing or the images cannot be sent to worker processes: give workers=0 to decode in this one."
        ) from error
    yield from batches


def encoded(batches: Iterator[Decoded], encoder: Encoder, clock: Clock) -> Iterator[Vectors]:
    """Encodes batches, and yields each while an accelerator already works on the next."""
    before: tuple[Decoded, Tensor, Tensor | None] | None = None
    while True:
        with clock.waiting("decode"):
            batch = next(batches, None)
        with clock.waiting("model"):
            now = None if batch is None else (batch, *encoder.doubting(batch.pixels))
            done = None if before is None else _arrived(*before, encoder.stored)
        if done is not None:
            yield done
        if now is None:
            return
        before = now


@contextmanager
def alive() -> Iterator[None]:
    """Says in one sentence that a worker died, wherever a ``with`` block is told."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _killed() from error
    except (ConnectionError, EOFError) as error:
        # a batch went with it; torch raises once more, anywhere, as soon as it is told of the death
        with suppress(RuntimeError):
            time.sleep(1)
        raise _killed() from error


def written(shards: Iterable[tuple[int, Shard]], store: Store, clock: Clock) -> Iterator[int]:
    """Writes shards while the next are made, one at a time; yields each number when its shard is there."""
    with ThreadPoolExecutor(1) as writer:
        before: tuple[int, Future[None]] | None = None
        for number, shard in shards:
            if before is not None:
                with clock.waiting("write"):
                    before[1].result()
                yield before[0]
            before = number, writer.submit(store.write, number, shard)
        if before is not None:
            with clock.waiting("write"):
                before[1].result()
            yield before[0]


def _killed() -> UserError:
    return UserError(
        "A process that decodes pictures was killed, as systems do when memory runs out: run the same command again, "
        "which goes on where this one stopped, with fewer --workers."
    )


def _arrived(batch: Decoded, features: Tensor, dense: Tensor | None, dtype: torch.dtype) -> Vectors:
    vectors = features.to(dtype).cpu().numpy()
    errors = [
        error or ("" if finite else "the vector is not finite")
        for error, finite in zip(batch.errors, np.isfinite(vectors).all(1).tolist(), strict=True)
    ]
    again = None if dense is None else dense.cpu().numpy() & ~np.array([bool(error) for error in errors], bool)
    return Vectors(batch.shard, batch.start, batch.keys, vectors, batch.sizes.numpy(), errors, again)


def _workers(device: torch.device) -> int:
    """On a CPU, most of the cores are for the model."""
    if device.type == "cpu":
        return max(1, torch.get_num_threads() // 4)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, cores)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    warnings.simplefilter("ignore")  # what Pillow says about odd files, which are accounted for
