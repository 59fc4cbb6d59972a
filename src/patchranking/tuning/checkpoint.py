"""Progress of a tuning on disk, so that a killed one resumes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from patchranking.checkpoint import load_training, notes, save_training
from patchranking.errors import UserError
from patchranking.prompts.tokens import Prompts

__all__ = ["Checkpoint", "Progress"]


@dataclass
class Progress:
    """How far a tuning is.

    Attributes:
        step: Steps done.
        total: Sum of the losses since the last epoch's end.
        loss: Mean loss of every epoch.
        held_out: Share of the held-out images found, after every epoch.
    """

    step: int = 0
    total: float = 0.0
    loss: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, that is best on held-out images, the first of equals; without any, the last."""
        return 1 + self.held_out.index(max(self.held_out)) if self.held_out else len(self.loss)


class Checkpoint:
    """Tokens, momentum, progress and the best tokens so far, in one file that is written whole or not at all."""

    def __init__(self, path: Path, identity: str, prompts: Prompts, optimiser: torch.optim.Optimizer) -> None:
        self.path, self.identity, self.prompts, self.optimiser = path, identity, prompts, optimiser
        self._best: dict[str, Tensor] = {}

    def save(self, progress: Progress, best: bool) -> None:
        if best:
            self._best = {name: value.clone() for name, value in self.prompts.state_dict().items()}
        about = {"identity": self.identity, "progress": json.dumps(asdict(progress))}
        save_training(self.path, self.prompts, self.optimiser, about, self._best)

    def resume(self) -> Progress:
        """Loads what is there.

        Raises:
            UserError: If it is the progress of another tuning.
        """
        if (about := notes(self.path)) is None:
            return Progress()
        if about.get("identity") != self.identity:
            raise UserError(
                f"'{self.path.parent}' holds the progress of a tuning of other images or with other settings: choose "
                "another folder, or delete it."
            )
        self._best = load_training(self.path, self.prompts, self.optimiser)
        return Progress(**json.loads(about["progress"]))

    def load_best(self) -> None:
        """Loads the best tokens."""
        self.prompts.load_state_dict(self._best)
