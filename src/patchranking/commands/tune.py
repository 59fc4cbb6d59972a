"""patchranking tune."""

from __future__ import annotations

import os
from pathlib import Path

from patchranking.commands.common import print_left_out, print_skipped
from patchranking.data import ClassesName, load_data, of_classes
from patchranking.methods.attach import fitted_pruner
from patchranking.towers.load import load_model
from patchranking.tuning.tune import TuneSettings
from patchranking.tuning.tune import tune as tune_tokens

__all__ = ["tune"]


def tune(
    model: str,
    data: str,
    settings: TuneSettings,
    pruner: Path = Path("runs/fit"),
    out: Path = Path("runs/tune"),
    keep: float | None = None,
    classes: ClassesName = "all",
    limit: int | None = None,
    device: str = "cpu",
) -> None:
    """Tunes learnable tokens on the pruned model with a few shots (Phase III); resumes after a kill.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH or hf:NAME_OR_PATH.
        data: Labelled images: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by
            commas; or a list of captions (.tsv, .csv, .json).
        settings: How to tune.
        pruner: Folder written by fit, or a repository on the Hub.
        out: Folder for the pruner with its tokens.
        keep: Keep rate to tune at, 1 for the dense model; the pruner's own when omitted.
        classes: All classes, the first half of them (base), or the second (new).
        limit: Maximum number of images, drawn by seed, of which shots are drawn.
        device: cpu, cuda, cuda:1, mps, ...
    """
    artefact = fitted_pruner(pruner).untuned
    if keep is not None:
        artefact.keep = keep
    loaded = load_model(model, device)
    images = of_classes(load_data(data, limit, settings.seed, "train"), classes)
    _, report = tune_tokens(loaded, images, artefact, out, settings)
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"loss {report.loss[0]:.4f} in the first epoch, {report.loss[-1]:.4f} in the last")
    if report.held_out:
        print(f"{max(report.held_out):.1%} of {report.n_held_out} held-out images right after epoch {report.epoch}")
    left_out = len(images) - report.n_tuned - report.n_held_out - len(report.skipped)
    print(
        f"{len(images)} images in = {report.n_tuned} tuned on + {report.n_held_out} held out + {len(report.skipped)} "
        f"skipped + {left_out} not drawn; wrote {out}"
    )
    print_skipped(report.skipped)
    print_left_out(images)
