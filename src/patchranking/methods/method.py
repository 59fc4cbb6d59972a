"""One interface for every way to encode images: dense, pruned, merged, an oracle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from patchranking.errors import UserError
from patchranking.methods.batch import Batch
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.attach import Reduction, Scorer, run_reduced
from patchranking.pruning.inside import Inside, run_inside
from patchranking.pruning.macs import with_macs_of
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.stages import by_scores
from patchranking.towers import VisionTower

__all__ = [
    "Attachable",
    "BetweenHalves",
    "Dropping",
    "Encoded",
    "Encoding",
    "Fixed",
    "Method",
    "Style",
    "by_importance",
    "reducing",
]


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        colour: Hex colour that is legible on white and on near-black, and distinct for colour-blind readers.
        marker: Matplotlib marker, a second cue besides the colour.
    """

    colour: str
    marker: str


class Encoded(NamedTuple):
    """Features of a batch.

    Attributes:
        features: ``(batch, features)``, not normalised.
        keep_indices: The patches that reach the end, ``(batch, kept)``; None where patches are mixed or merged.
        errors: Estimated 1 - cosine to the dense feature, before any fallback, ``(batch,)``; None where there is none.
    """

    features: Tensor
    keep_indices: Tensor | None = None
    errors: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Encoding:
    """A method at one schedule.

    Attributes:
        tower: The image encoder.
        schedule: The schedule it really runs, which is not the reference for methods that are matched by MACs.
        run: Encodes a batch.
        search: What an oracle looks up about a batch before ``run``; its cost is not that of the encoding.
        classes: Unit text features of the classes, ``(classes, features)``, where the method has tuned its own.
        images: Indices of the images to measure it on; None for all.
        inside: Whether patches go between the attention and the MLP of the schedule's blocks, not before these.
        share: Of the dense MACs, where what runs cannot be counted.
        fallback: The estimated error above which images run densely once more, from the schedule's first block on.
        first: The encoding without that, where there is a fallback.
    """

    tower: VisionTower
    schedule: Schedule
    run: Callable[[Batch], Encoded]
    search: Callable[[Batch], object] = lambda batch: None
    classes: Tensor | None = None
    images: Set[int] | None = None
    inside: bool = False
    share: float | None = None
    fallback: float | None = None
    first: Encoding | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features ``(batch, features)`` of preprocessed images ``(batch, 3, height, width)``."""
        return self.run(Batch(self.tower, pixels)).features


def reducing(
    tower: VisionTower, schedule: Schedule, reductions: Mapping[int, Reduction], classes: Tensor | None = None
) -> Encoding:
    """The encoding that applies reductions before blocks."""
    start = min(reductions)

    def run(batch: Batch) -> Encoded:
        tokens, keep_indices, _ = run_reduced(tower, batch.entering(start), start, reductions)
        return Encoded(tower.pool(tokens), keep_indices)

    return Encoding(tower, schedule, run, classes=classes)


def by_importance(
    tower: VisionTower, schedule: Schedule, importance: Callable[[Batch], Tensor]
) -> Callable[[Batch], Encoded]:
    """What encodes a batch without its patches of low importance, ``(batch, patches)``, at every stage."""

    def run(batch: Batch) -> Encoded:
        reductions = by_scores(tower, schedule, {schedule.block: lambda _: importance(batch)})
        return reducing(tower, schedule, reductions).run(batch)

    return run


class Method(ABC):
    """A way to encode images.

    Attributes:
        name: As in results.json.
        style: How charts draw it.
        oracle: Whether it sees the result before it chooses; no deployable method does.
        shown: Whether the patches that it keeps are worth a look in the report.
        tuned: Which tokens are tuned: ``none``, ``text``, ``visual`` or ``both``.
        prompts: The tuned tokens.
        needs_class_token: Whether it reads the attention of a class token.
        places: Where it does best, as blocks of a model of 12; nowhere in particular when empty.
    """

    name: str
    style: Style
    needs_class_token: bool = False
    places: tuple[int, ...] = ()
    oracle: bool = False
    shown: bool = False
    tuned: str = "none"
    prompts: Prompts | None = None

    @abstractmethod
    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        """The method at a schedule.

        Args:
            tower: The image encoder.
            schedule: The reference: where patches are dropped and how many stay. A method that does not drop patches
                takes a schedule of its own with the same MACs.
            seed: Seed of what is drawn at random.
        """

    def beside(self, tower: VisionTower, reference: Schedule, seed: int) -> Encoding:
        """The method at its best with the MACs of a reference: at its own places, as long as it can have so few there.

        Arguments as in ``at``.
        """
        if self.places and reference.keep < 1:
            shape = Schedule.even([place * tower.depth // 12 for place in self.places], 0.5)
            with suppress(UserError):
                return self.at(tower, with_macs_of(tower, shape, reference), seed)
        return self.at(tower, reference, seed)


class Fixed(Method):
    """A method with one keep rate of its own, whatever the schedule.

    Attributes:
        keep: The keep rate.
        fingerprint: What tells it from others of its kind.
    """

    keep: float
    fingerprint: str


class Attachable(Method):
    """A method that also runs by hooks inside the library's own model.

    Attributes:
        inside: Whether its steps go between the attention and the MLP of blocks, not before blocks.
    """

    inside: bool = False

    @abstractmethod
    def steps(
        self, tower: VisionTower, schedule: Schedule, seed: int
    ) -> Mapping[int, Reduction] | Mapping[int, Inside]:
        """Block -> what happens there; nothing where all patches stay. Arguments as in ``at``."""


class Dropping(Attachable):
    """Drops the patches that a scorer puts last, and leaves the others as they are.

    Attributes:
        rescore: Whether every stage scores again, except in rotary models; otherwise patches go by the scores of the
            first.
    """

    rescore: bool = False

    @abstractmethod
    def scorer(self, tower: VisionTower, block: int, seed: int) -> Scorer:
        """What scores the tokens that enter a block."""

    def steps(self, tower: VisionTower, schedule: Schedule, seed: int) -> dict[int, Reduction]:
        blocks = list(schedule.stages) if self.rescore and not tower.rotary else [schedule.block]
        return by_scores(tower, schedule, {block: self.scorer(tower, block, seed) for block in blocks})

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        return reducing(tower, schedule, self.steps(tower, schedule, seed))


class BetweenHalves(Attachable):
    """Reduces tokens between the attention and the MLP of blocks."""

    inside = True

    def schedule(self, tower: VisionTower, reference: Schedule) -> Schedule:
        """Patches that the MLPs of blocks see, as shares of all: those of the reference, unless the method has its own.

        One that has takes the MACs of the reference.
        """
        return reference

    @abstractmethod
    def reductions(self, tower: VisionTower, schedule: Schedule) -> dict[int, Inside]:
        """Block -> what happens inside it on the method's own schedule."""

    def steps(self, tower: VisionTower, schedule: Schedule, seed: int) -> dict[int, Inside]:
        return {} if schedule.keep == 1 else self.reductions(tower, self.schedule(tower, schedule))

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        own = self.schedule(tower, schedule)

        def run(batch: Batch) -> Encoded:
            return Encoded(self.encode(tower, batch.entering(own.block), own, own.block))

        return Encoding(tower, own, run, inside=True)

    def encode(self, tower: VisionTower, tokens: Tensor, schedule: Schedule, start: int = 0) -> Tensor:
        """Features ``(batch, features)`` of tokens that enter block ``start``, on the method's own schedule."""
        left = run_inside(tower, tokens, start, self.reductions(tower, schedule))
        return tower.pool(left.tokens, gates=None if left.sizes is None else left.sizes[:, tower.num_prefix_tokens :])
