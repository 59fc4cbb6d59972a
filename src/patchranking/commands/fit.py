"""patchranking fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from patchranking.commands.choose import save_within
from patchranking.commands.common import number, print_left_out, print_skipped
from patchranking.data import load_data, shared_pictures
from patchranking.errors import UserError
from patchranking.evaluation.budget import Budget
from patchranking.files import make_folder
from patchranking.fitting.estimate import estimate_minutes
from patchranking.fitting.fit import FitReport, planned
from patchranking.fitting.fit import fit as fit_pruner
from patchranking.fitting.settings import FitSettings
from patchranking.pruner import Pruner
from patchranking.towers.load import load_model

__all__ = ["fit"]

_QUICK = {"ranked": 60, "steps": 60, "epochs": 10, "limit": 200}


def fit(
    model: str,
    data: str,
    settings: FitSettings,
    out: Path = Path("runs/fit"),
    rankings: Path | None = None,
    budget: str | None = None,
    budget_data: str | None = None,
    device: str = "cpu",
    preset: Literal["full", "quick"] = "full",
) -> None:
    """Fits a pruner (Phase II) to preserve the image feature, to imitate golden rankings, or both.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by commas.
        settings: How to fit.
        out: Folder for the pruner.
        rankings: Folder written by rank for the same model and images, to imitate.
        budget: "0.5 points", "0.98 cosine", "40 ms" (one image) or another of choose: finds the keep rate and the
            schedule instead.
        budget_data: Images that the fit has not seen, to measure the budget on.
        device: cpu, cuda, cuda:1, mps, ...
        preset: quick caps limit, ranked, steps and epochs for a first look; a full fit is better.
    """
    allowed = None if budget is None else Budget.parse(budget)
    if (budget is None) != (budget_data is None):
        raise UserError("A budget is measured on images that the fit has not seen: give --budget with --budget_data.")
    if budget is not None and settings.hands_on is not None:
        raise UserError("A budget is measured on image features, and --target tokens preserves none: give --keep.")
    if preset == "quick":
        most: dict[str, Any] = {name: min(getattr(settings, name), cap) for name, cap in _QUICK.items()}
        settings = replace(settings, **most)
    loaded, images = load_model(model, device), load_data(data, settings.limit, settings.seed, "train")
    unseen = None if budget_data is None else load_data(budget_data, None, settings.seed)
    if allowed is not None and unseen is not None:
        allowed.check(loaded, unseen)
        if seen := shared_pictures(images, unseen):
            raise UserError(
                f"{len(seen)} of the {len(unseen)} images of --budget_data are among the {len(images)} of the fit, "
                f"too, such as '{seen[0]}': give images that the fit has not seen."
            )
    make_folder(out)
    schedule = planned(loaded, settings, rankings)
    minutes = estimate_minutes(loaded.tower, len(images), settings, schedule)
    if minutes > 1:
        print(f"about {minutes:.0f} min for {len(images)} images with these settings on this machine")
    pruner, report = fit_pruner(loaded, images, out, settings, rankings)
    _print(report, settings)
    _print_measured(pruner)
    left_out = len(images) - report.n_images - len(report.skipped)
    print(
        f"{len(images)} images in = {report.n_images} used + {len(report.skipped)} skipped + {left_out} without a "
        f"ranking; wrote {out}"
    )
    print_skipped(report.skipped)
    print_left_out(images)
    if unseen is not None:
        print_left_out(unseen)
    if allowed is not None and unseen is not None:
        try:
            print_skipped(save_within(loaded, unseen, pruner, allowed, out))
        except UserError as error:
            raise UserError(f"{error} The fitted pruner is kept in '{out}', at keep rate {pruner.keep:g}.") from error


def _print(report: FitReport, settings: FitSettings) -> None:
    if report.imitation is not None:
        rate, chance = report.imitation.matching_rate, report.imitation.chance
        print(f"matching rate {rate:.3f} (chance {chance:.3f}) on {report.imitation.n_held_out} held-out images")
    if report.distillation is not None:
        errors = ", ".join(f"{error:.4f} at {rate}" for rate, error in report.distillation.feature_error.items())
        print(f"1 - cosine to the dense {settings.target}, {report.distillation.n_held_out} held-out images: {errors}")
    if report.doubt is not None:
        ranks = ", ".join(f"{value:.2f} at {rate}" for rate, value in report.doubt.spearman.items())
        print(f"rank correlation of estimated and true error, {report.doubt.n_held_out} held-out images: {ranks}")
    if settings.hands_on is not None:
        print(f"{report.n_kept} of {report.n_patches} image tokens go on in hidden_states[{settings.hands_on}]")


def _print_measured(pruner: Pruner) -> None:
    """What it costs and loses at its own keep rate, on the images held out."""
    measured = pruner.measured
    row = None if measured is None else measured.at(pruner.keep)
    if measured is None or row is None or row.get("feature_cosine") is None:
        return
    speed, dense = row["images_per_second"], row["images_per_second_dense"]
    says = [f"{number(row['macs_share'], '.0%')} of the MACs", f"cosine {number(row['feature_cosine'], '.4f')}"]
    if row["top1"] is not None:
        says.append(f"top-1 {number(row['top1'], '.1f')} (dense {number(row['top1_dense'], '.1f')})")
    says.append(f"{number(speed and dense and speed / dense, '.2f')}x the dense speed")
    print(f"at keep rate {pruner.keep:g}, on {measured.n_images} held-out images: {', '.join(says)}")
