"""The errors of gradients at the stages of a finished or running pretraining, and the schedule that they suggest."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from patchranking.checkpoint import claim, digest
from patchranking.data import ImageData
from patchranking.errors import UserError
from patchranking.files import make_folder
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.contrastive import ContrastiveSettings, make_objective
from patchranking.pretrain.encoder import normalisation_of
from patchranking.pretrain.gradients import GradientSettings, stage_errors
from patchranking.pretrain.pictures import read_pictures
from patchranking.pretrain.progress import load_stage, read_stage, stages_of
from patchranking.pretrain.schedule import CompressionSchedule
from patchranking.pretrain.search import best_compression, schedule_from_errors

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True)
class Analysis:
    """Errors of gradients at stages of a training.

    Attributes:
        rows: One a stage and compression: ``share``, ``patch_size``, ``drop``, ``cost`` and the fields of
            ``GradientError``.
        best: Share of the budget -> the compression with the least error.
        schedule: What they suggest; None of a single stage.
        n_images: Pictures that batches were drawn from.
        skipped: Key -> why a picture was left out.
    """

    rows: list[dict[str, Any]]
    best: dict[float, Compression]
    schedule: CompressionSchedule | None
    n_images: int
    skipped: dict[str, str]

    @property
    def self_check(self) -> str:
        """The bias of the uncompressed gradient against its own expectation at each stage, which is none."""
        found = [row for row in self.rows if row["cost"] == 1.0]
        return ", ".join("{:+.3f} ({:+.3f} to {:+.3f})".format(row["bias2"], *row["bias2_interval"]) for row in found)

    def flat_rows(self) -> list[dict[str, Any]]:
        """The rows with each interval as two columns."""
        found = []
        for row in self.rows:
            flat = {name: value for name, value in row.items() if not name.endswith("_interval")}
            for name in ("bias2", "variance", "error"):
                flat[f"{name}_low"], flat[f"{name}_high"] = row[f"{name}_interval"]
            found.append(flat)
        return found


def analyse(
    checkpoint: Path,
    data: ImageData,
    settings: GradientSettings,
    out: str | Path = "runs/gradient-error",
    device: str = "cpu",
) -> Analysis:
    """Measures the errors of gradients under all candidates at every stage; a killed analysis goes on.

    Args:
        checkpoint: Folder of a pretraining, or one file of its stages.
        data: Pictures to draw batches from.
        settings: How gradients are compared.
        out: Folder for what is finished.
        device: cpu, cuda, cuda:1, mps, ...

    Raises:
        UserError: If the checkpoint is of another kind or model, the folder holds another analysis, or there are too
            few pictures.
    """
    paths = stages_of(checkpoint)
    stages = {path: read_stage(path) for path in paths}
    own = _settings_of(paths[0], stages[paths[0]][1])
    objective = make_objective(own).to(torch.device(device)).train()
    pictures = read_pictures(data, own.image_size)
    normalisation = normalisation_of(objective.encoder)
    about = {"images": digest([data.keys[index] for index in pictures.indices]), "checkpoint": asdict(own)}
    folder = claim(make_folder(out) / "progress", "analysis", asdict(settings) | about)
    errors: dict[float, list[dict[str, Any]]] = {}
    for path, (share, _) in stages.items():
        load_stage(path, objective)
        errors[share] = stage_errors(objective, pictures, normalisation, settings, folder, f"{share:.0%}")
    schedule = schedule_from_errors(errors, objective.base, objective.passes) if len(errors) > 1 else None
    rows = [{"share": share} | row for share, found in errors.items() for row in found]
    best = {share: best_compression(found) for share, found in errors.items()}
    return Analysis(rows, best, schedule, len(pictures), pictures.skipped)


def _settings_of(path: Path, of: dict[str, Any]) -> ContrastiveSettings:
    """The settings that a checkpoint was trained by."""
    known = {field.name for field in dataclasses.fields(ContrastiveSettings)}
    try:
        return ContrastiveSettings(**{name: value for name, value in of.items() if name in known})
    except (TypeError, UserError) as error:
        raise UserError(f"'{path}' is of a pretraining that this version does not know: {error}") from error
