"""A sampler that shows a training the most typical images first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from patchranking.errors import UserError, check_numbers
from patchranking.pretrain.curriculum import Curriculum, distinct_share, probabilities

__all__ = ["CurriculumSampler"]

_LEVELS = 2**16
"""Distances are told apart to this part of their range: what is solved for then is as fast for millions of images."""


class CurriculumSampler(Sampler[int]):
    """Draws as many images an epoch as there are, with replacement, prototypes first; see ``Curriculum``.

    It takes the place of a ``RandomSampler`` or ``DistributedSampler`` in any training loop. An epoch depends on the
    seed and its number alone: any number of ranks together draw the same. ``set_epoch`` may be called, as with
    ``DistributedSampler``; otherwise every pass is the next epoch.

    Example:
        >>> sampler = CurriculumSampler(distances, epochs=100)  # doctest: +SKIP
        >>> loader = DataLoader(dataset, batch_size=256, sampler=sampler)  # doctest: +SKIP

    Args:
        distances: How far each image is from its prototype, ``(images,)``, in the data set's order; any finite scale.
        epochs: Length of the training in epochs of as many draws as there are images; need not be whole.
        curriculum: In which order.
        seed: Of the draws.
        num_replicas: Ranks that share an epoch; by default those of the process group, or one. Where it does not divide
            the number of images, the first draws come again to fill the last round, as with ``DistributedSampler``.
        rank: Of this process, by default that of the process group.

    Attributes:
        epoch: The epoch that is drawn now, or drawn next.

    Raises:
        UserError: If the distances are no finite numbers, or there are none, or a number is out of its range.
    """

    def __init__(
        self,
        distances: np.ndarray | Tensor | Sequence[float],
        epochs: float,
        curriculum: Curriculum = Curriculum(),  # noqa: B008
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        numbers = {"epochs": epochs, "seed": seed, "num_replicas": num_replicas, "rank": rank}
        check_numbers(numbers, epochs=0.0, seed=0, num_replicas=1, rank=0)
        if rank >= num_replicas:
            raise UserError(f"'rank' is below 'num_replicas', {num_replicas}, not {rank}.")
        self.epochs, self.curriculum, self.seed = epochs, curriculum, seed
        self.num_replicas, self.rank = num_replicas, rank
        self._levels, self._level, self._counts = _levels(distances, curriculum.order == "hard-first")
        self._members = np.argsort(self._level, kind="stable")
        self.epoch, self._start, self._given = 0, 0, 0
        self._over = False

    def __len__(self) -> int:
        return math.ceil(len(self._level) / self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        if self._over:
            self.set_epoch(self.epoch + 1)
        own = self._own(self._start)
        for place, index in enumerate(own.tolist(), 1):
            self._given = self._start + place * self.num_replicas
            yield index
        self._over = True

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next pass draws; one that was resumed, ``epoch`` being the same, goes on."""
        check_numbers({"epoch": epoch}, epoch=0)
        if epoch != self.epoch or self._over:
            self.epoch, self._start, self._given, self._over = epoch, 0, 0, False

    def temperature(self, epoch: int) -> float:
        """The temperature of an epoch, in units of the distances' range; infinite for all images alike."""
        progress = epoch / self.epochs if self.epochs else 1.0
        return self.curriculum.temperature_at(progress, self._levels, self._counts)

    def share(self, epoch: int) -> float:
        """Expected share of distinct images in an epoch."""
        return distinct_share(self._levels, self.temperature(epoch), self._counts)

    def draw(self, epoch: int) -> np.ndarray:
        """All draws of an epoch, of every rank in turn, int64 ``(images,)``."""
        number = len(self._level)
        random = np.random.default_rng([self.seed, epoch])
        ends = np.cumsum(probabilities(self._levels, self.temperature(epoch), self._counts) * self._counts)
        drawn = np.searchsorted(ends, random.random(number) * ends[-1], side="right").clip(max=len(ends) - 1)
        counts = self._counts[drawn]
        first = (np.cumsum(self._counts) - self._counts)[drawn]
        return np.asarray(self._members[first + np.minimum(random.random(number) * counts, counts - 1).astype(int)])

    def state_dict(self, taken: int | None = None) -> dict[str, int]:
        """Where the sampler is, ready for JSON.

        Args:
            taken: Draws of this pass that the training has used on this rank. By default all that were given, which is
                too many where the workers of a ``DataLoader`` fetch ahead.
        """
        position = self._given if taken is None else self._start + taken * self.num_replicas
        return {"epoch": self.epoch, "position": position, "seed": self.seed, "images": len(self._level)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was, with any number of ranks: the next pass draws the rest of that epoch.

        Raises:
            UserError: If the state is of other images or another seed.
        """
        for name, own in (("seed", self.seed), ("images", len(self._level))):
            if state[name] != own:
                raise UserError(f"This state is of a sampler with {name} {state[name]}, not {own}: resume that one.")
        self.epoch, self._over = state["epoch"], False
        self._start = self._given = min(state["position"], len(self._level))

    def _own(self, start: int) -> np.ndarray:
        """The draws of this rank from a place in the epoch on."""
        drawn = self.draw(self.epoch)
        rest = drawn[start:]
        fill = -len(rest) % self.num_replicas
        return np.concatenate([rest, np.resize(drawn, fill)])[self.rank :: self.num_replicas]


def _levels(
    distances: np.ndarray | Tensor | Sequence[float], reverse: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different distances in 0 ... 1, ascending; which of them each image has; and how many images have each."""
    given = distances.detach().cpu() if isinstance(distances, Tensor) else distances
    found = np.asarray(given, np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise UserError("Distances are finite numbers, one for each image, and at least one.")
    found = found - found.min()
    found = np.round(found * (_LEVELS / (found.max() or 1)))
    levels, level, counts = np.unique(_LEVELS - found if reverse else found, return_inverse=True, return_counts=True)
    return levels / _LEVELS, level, counts
