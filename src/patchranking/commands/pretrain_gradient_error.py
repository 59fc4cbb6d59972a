"""patchranking pretrain gradient-error."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from patchranking.commands.common import print_left_out, print_skipped
from patchranking.data import load_data
from patchranking.evaluation.environment import environment
from patchranking.files import replacing, write_json
from patchranking.pretrain.analysis import analyse
from patchranking.pretrain.gradients import GradientSettings
from patchranking.report.pretraining import write_gradient_errors

__all__ = ["pretrain_gradient_error"]


def pretrain_gradient_error(
    checkpoint: Path,
    data: str,
    settings: GradientSettings,
    out: Path = Path("runs/gradient-error"),
    limit: int | None = None,
    device: str = "cpu",
) -> None:
    """Measures how wrong gradients of compressed batches are, for their cost, at stages of a training; resumes.

    Args:
        checkpoint: Folder written by pretrain contrastive, for all its stages, or one file of its progress/stages.
        data: Pictures, best those it was trained on: demo[:split], hf:NAME[:split], wds:SHARDS,
            torchvision:NAME[:split], or folders joined by commas.
        settings: How gradients are compared.
        out: Folder for errors.json, errors.parquet, the schedule that they suggest, and the report.
        limit: Maximum number of pictures, drawn by seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    images = load_data(data, limit, settings.seed, "train")
    found = analyse(checkpoint, images, settings, out, device)
    if found.schedule is not None:
        found.schedule.save(out / "schedule.yaml")
    with replacing(out / "errors.parquet") as partial:
        pq.write_table(pa.Table.from_pylist(found.flat_rows()), partial)
    results = {"environment": environment(torch.device(device)), "rows": found.rows}
    write_json(out / "errors.json", results)
    page = write_gradient_errors(results, out / "report.html", f"Errors of gradients: {checkpoint.name}")
    for share, best in found.best.items():
        print(f"at {share:.0%} of the budget: {best}")
    print(f"base against itself: bias {found.self_check}, which should be about 0")
    left_out = len(images) - found.n_images
    print(f"{len(images)} images in = {found.n_images} used + {left_out} skipped; wrote {page}")
    print_skipped(found.skipped)
    print_left_out(images)
