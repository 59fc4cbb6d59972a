"""How to fit a pruner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from patchranking.errors import UserError, check_numbers
from patchranking.predictor.losses import LOSSES, LossName
from patchranking.predictor.networks import NetworkName
from patchranking.predictor.precision import TrainingPrecision
from patchranking.predictor.targets import FEATURE, HandedOn, Target, handed_on_after
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import check_keep_rate
from patchranking.ranking.search import ScoreName, SearchName, SearchSettings
from patchranking.towers import VisionTower

__all__ = ["FitSettings"]

_PAPER_BLOCK = 3


@dataclass(frozen=True)
class FitSettings:
    """How to fit a pruner.

    Attributes:
        objective: distill needs no rankings; imitate learns golden ones, as in the paper; both imitates, then distills.
        target: What distillation preserves: the image feature, or the patch tokens that a vision-language model such as
            LLaVA reads, each at its own place. Rankings are by the feature in either case.
        layer: Which hidden state those tokens are of, LLaVA's ``vision_feature_layer``: 0 enters the first block, -1
            leaves the last one, without the final norm.
        ranked: Maximum number of images, drawn by seed, that are ranked for imitation, unless rankings are given.
        keep: Keep rate stored with the pruner; it can be changed later without fitting again.
        macs: Share of the dense multiply-accumulates at which to store it, in place of keep.
        steps: Steps of distillation.
        precision: Of distillation's passes through the model, 32-true or bf16-mixed; by default the latter where the
            processor multiplies bfloat16. What is learned is float32 in either case.
        network: The predictor; mlp and transformer take any number of patches.
        loss: How rankings are imitated.
        search: How patches are ranked for imitation, unless rankings are given.
        score: What counts as damage in that ranking, unless rankings are given.
        blocks: Patches are dropped before these blocks, equal shares at each; the paper has 3, or 3 5 7 9. By default
            five stages that each let the same share through, at 1, 2, 4, 6 and 8 of 12; without distillation 3 alone.
        schedule: Share kept before each block, such as '{3: 0.55, 5: 0.47}', in place of keep and blocks.
        merge: Whether patches that go may merge into similar ones, and attention counts tokens by their sizes, through
            a mask; false leaves attention kernels that take none as they are. Learned by distillation.
        epochs: Passes of imitation over the images.
        seed: Random seed.
        limit: Maximum number of images, drawn by seed; some 1,000 are enough, and more take longer.
    """

    objective: Literal["distill", "imitate", "both"] = "distill"
    target: Literal["feature", "tokens"] = "feature"
    layer: int = -2
    ranked: int = 400
    keep: float = 0.5
    macs: float | None = None
    steps: int = 1000
    precision: TrainingPrecision | None = None
    network: NetworkName = "mixer"
    loss: LossName = "listnet"
    search: SearchName = "sketched"
    score: ScoreName = "preservation"
    blocks: list[int] | None = None
    schedule: dict[int, float] | None = None
    merge: bool = True
    epochs: int = 30
    seed: int = 0
    limit: int = 2000

    def __post_init__(self) -> None:
        check_keep_rate(self.keep)
        check_numbers(vars(self), steps=0, epochs=1, seed=0, limit=1)
        for block in self.blocks or []:
            check_numbers({"blocks": block}, blocks=0)
        if self.objective not in ("distill", "imitate", "both"):
            raise UserError(f"Unknown objective '{self.objective}': choose from distill, imitate, both.")
        if self.target not in ("feature", "tokens"):
            raise UserError(f"Unknown target '{self.target}': choose from feature, tokens.")
        if self.target == "tokens" and not self.distills:
            raise UserError("Only distillation has tokens for a target: choose --objective distill or both.")
        precisions = get_args(TrainingPrecision)
        if self.precision not in (None, *precisions):
            raise UserError(f"Unknown precision '{self.precision}': choose from {', '.join(precisions)}.")
        if self.network not in get_args(NetworkName):
            raise UserError(f"Unknown network '{self.network}': choose from {', '.join(get_args(NetworkName))}.")
        SearchSettings(self.search, self.score)
        if self.loss not in LOSSES:
            raise UserError(f"Unknown loss '{self.loss}': choose from {', '.join(LOSSES)}.")
        if self.schedule is not None and (self.blocks is not None or self.macs is not None):
            raise UserError("A schedule names its blocks and shares: give --schedule, or --blocks, --keep and --macs.")
        if self.ranked < 1:
            raise UserError(f"At least 1 image must be ranked, not {self.ranked}; --objective distill ranks none.")
        if self.objective != "imitate" and self.steps < 1:
            raise UserError(f"Distillation needs 1 step or more, not {self.steps}; --objective imitate has none.")

    @property
    def distills(self) -> bool:
        """Whether predictors are distilled."""
        return self.objective != "imitate"

    @property
    def imitates(self) -> bool:
        """Whether the first predictor imitates golden rankings."""
        return self.objective != "distill"

    @property
    def hands_on(self) -> int | None:
        """The hidden state whose tokens are preserved; None where it is the feature."""
        return self.layer if self.target == "tokens" else None

    def preserved(self, tower: VisionTower) -> Target:
        """What distillation preserves; raises UserError when the tower has no such hidden state."""
        return FEATURE if self.hands_on is None else HandedOn(handed_on_after(self.hands_on, tower.depth))

    def stages(self, tower: VisionTower, first: int | None) -> Schedule:
        """The schedule for a tower; ``first`` is where patches are dropped first unless a setting says, or is None."""
        if self.schedule is not None:
            return Schedule(self.schedule)
        if self.blocks:
            return Schedule.spread(self.blocks, self.keep)
        if self.distills:
            return Schedule.default(self.preserved(tower).stop or tower.depth, self.keep, first)
        return Schedule({_PAPER_BLOCK if first is None else first: self.keep})
