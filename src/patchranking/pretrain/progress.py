"""Progress of a pretraining on disk, so that a killed one goes on as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from patchranking.checkpoint import claim, load_training, notes, save_training
from patchranking.errors import UserError
from patchranking.files import replacing

__all__ = ["Progress", "ProgressFolder", "load_stage", "read_stage", "stages_of"]

_STAGES, _TRAINING = "stages", "training.safetensors"


@dataclass
class Progress:
    """How far a pretraining is.

    Attributes:
        step: Steps done.
        spent: Passes spent.
        seconds: Spent on steps, in all runs together.
        cpu_seconds: Those in which this process had a core, over all its threads; its workers' are not in it.
        loss: Running mean of the loss.
        costs: Name of a compression -> passes of one image, where they were measured.
        rows: What was found at each evaluation, in order.
    """

    step: int = 0
    spent: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    loss: float = 0.0
    costs: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def spend(self, seconds: float, cpu_seconds: float) -> None:
        """Notes the time of a step."""
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds

    def add(self, loss: float, passes: float, memory: float) -> None:
        """Notes a step: its loss, the passes it spent, and the weight of the past in the running mean."""
        self.loss = memory * self.loss + (1 - memory) * loss if self.step else loss
        self.step += 1
        self.spent += passes


class ProgressFolder:
    """The folder of a pretraining's progress, and its weights at every evaluation.

    Args:
        folder: For the files.
        of: All that the result depends on, ready for JSON.

    Raises:
        UserError: If it holds the progress of another.
    """

    def __init__(self, folder: Path, of: Mapping[str, Any]) -> None:
        self.folder, self._of = claim(folder, "pretraining", of), dict(of)
        (self.folder / _STAGES).mkdir(exist_ok=True)

    def save(self, objective: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Writes weights, the optimiser's state and the progress into one file, whole or not at all."""
        save_training(self.folder / _TRAINING, objective, optimiser, {"progress": json.dumps(asdict(progress))})

    def resume(self, objective: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
        """Loads what is there; a fresh start where there is nothing."""
        if (about := notes(self.folder / _TRAINING)) is None:
            return Progress()
        load_training(self.folder / _TRAINING, objective, optimiser)
        return Progress(**json.loads(about["progress"]))

    def save_stage(self, objective: nn.Module, share: float) -> None:
        """Keeps the weights at a share of the budget, for the analysis of gradients."""
        about = {"share": repr(share), "of": json.dumps(self._of)}
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in objective.state_dict().items()}
        with replacing(self.folder / _STAGES / f"{round(1000 * share):04d}.safetensors") as partial:
            partial.write_bytes(save(tensors, about))


def stages_of(path: Path) -> list[Path]:
    """The weights kept along a pretraining, in their order: all in its folder, or the one file given.

    Raises:
        UserError: If there are none.
    """
    found = [path] if path.is_file() else sorted(path.glob(f"**/{_STAGES}/*.safetensors"))
    if not found:
        raise UserError(f"'{path}' holds no weights of a pretraining: give the folder that pretrain contrastive wrote.")
    return found


def read_stage(path: Path) -> tuple[float, dict[str, Any]]:
    """The share of the budget, and what the pretraining was of.

    Raises:
        UserError: If the file was not kept by a pretraining.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        return float(about["share"]), json.loads(about["of"])
    except Exception as error:
        raise UserError(f"'{path}' is no checkpoint of pretrain contrastive: give one from its folder.") from error


def load_stage(path: Path, objective: nn.Module) -> None:
    """Loads kept weights into an objective of the same kind.

    Raises:
        UserError: If they are of another model.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    own = {name: value.shape for name, value in objective.state_dict().items()}
    if own != {name: value.shape for name, value in tensors.items()}:
        raise UserError(f"The checkpoint '{path}' is of another model or method: give the settings that it has.")
    objective.load_state_dict(tensors)
