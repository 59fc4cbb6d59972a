"""patchranking fit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from patchranking.commands.common import load, make_folder, print_skipped
from patchranking.data import load_data, subset
from patchranking.errors import UserError
from patchranking.evaluation.budget import Budget, choose, measure_curve
from patchranking.files import write_json
from patchranking.fitting.fit import default_schedule, first_block, fit_pruner
from patchranking.predictor.losses import LossName
from patchranking.predictor.networks import NetworkName
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import check_keep_rate
from patchranking.ranking.job import rank_dataset
from patchranking.ranking.search import ScoreName, SearchName, SearchSettings
from patchranking.ranking.store import finished_manifest

__all__ = ["fit"]


def fit(
    model: str,
    data: str,
    out: Path = Path("runs/fit"),
    objective: Literal["both", "distill", "imitate"] = "both",
    rankings: Path | None = None,
    ranked: int = 400,
    keep: float = 0.5,
    budget: str | None = None,
    budget_data: str | None = None,
    steps: int = 300,
    network: NetworkName = "mixer",
    loss: LossName = "listnet",
    search: SearchName = "sketched",
    score: ScoreName = "preservation",
    blocks: list[int] | None = None,
    schedule: dict[int, float] | None = None,
    rescore: bool | None = None,
    epochs: int = 30,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Fits a pruner (Phase II) by what its choice does to the image feature, by golden rankings, or by both.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by commas.
        out: Folder for the pruner.
        objective: imitate learns golden rankings; distill needs none; both imitates, then distills.
        rankings: Folder written by rank for the same model and images, to imitate.
        ranked: At most so many images, drawn by seed, are ranked for imitation, unless rankings are given.
        keep: Keep rate stored with the pruner; it can be changed later without fitting again.
        budget: "0.5 points", "0.98 cosine" or "40 ms" (one image): finds the keep rate and the schedule instead.
        budget_data: Images that the fit has not seen, to measure the budget on.
        steps: Steps of distillation.
        network: The predictor; mlp and transformer take any number of patches.
        loss: How rankings are imitated.
        search: How the patches are ranked for imitation, unless rankings are given.
        score: What counts as damage in that ranking, unless rankings are given.
        blocks: Patches go before these blocks, equal shares at each. By default 3 and a third of the way from there to
            the end, such as 3 and 6 of 12, or 3 alone without distillation; 3 alone or 3 5 7 9 in the paper.
        schedule: Share kept before each block, such as '{3: 0.55, 5: 0.47}', in place of keep and blocks.
        rescore: Score again before each later block, by predictors of their own; by default where they are distilled.
        epochs: Passes of imitation over the images.
        limit: At most so many images, drawn by seed.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    if schedule is not None and blocks is not None:
        raise UserError("A schedule names its blocks: give --schedule, or --blocks and --keep.")
    check_keep_rate(keep)
    if ranked < 1:
        raise UserError(f"At least 1 image must be ranked, not {ranked}; --objective distill ranks none.")
    allowed = None if budget is None else Budget.parse(budget)
    if (budget is None) != (budget_data is None):
        raise UserError("A budget is measured on images that the fit has not seen: give --budget with --budget_data.")
    if rankings is not None and objective == "distill":
        raise UserError("Distillation alone needs no rankings: leave --rankings out, or choose --objective both.")
    first = first_block(rankings)
    distilled = 0 if objective == "imitate" else steps
    asked = None
    if schedule is not None:
        asked = Schedule(schedule)
    elif blocks:
        asked = Schedule.spread(blocks, keep)
    loaded = load(model, device, seed)
    stages = asked or default_schedule(loaded.tower, first, keep, distilled)
    images = load_data(data, limit, seed, "train")
    unseen = None if budget_data is None else load_data(budget_data, None, seed)
    make_folder(out)
    if rankings is None and objective != "distill":
        rankings = out / "rankings"
        settings = SearchSettings(search, score, stages.block, seed=seed)
        rank_dataset(loaded, subset(images, ranked, seed), rankings, settings)
    pruner, report = fit_pruner(loaded, images, rankings, stages, distilled, epochs, network, loss, rescore, seed)
    point = None
    if allowed is not None and unseen is not None:
        point = choose(measure_curve(loaded, unseen, pruner, timing_batch=int(allowed.kind == "ms")), allowed)
        pruner = pruner.scheduled(point.schedule)
    pruner.save_pretrained(out)
    imitated = None if rankings is None else finished_manifest(rankings)["settings"]
    write_json(out / "fit.json", asdict(report) | {"seed": seed, "rankings": imitated})
    if report.imitation is not None:
        rate, chance = report.imitation.matching_rate, report.imitation.chance
        print(f"matching rate {rate:.3f} (chance {chance:.3f}) on {report.imitation.n_held_out} held-out images")
    if report.distillation is not None:
        errors = ", ".join(f"{error:.4f} at {rate}" for rate, error in report.distillation.feature_error.items())
        print(f"1 - cosine to the dense feature, {report.distillation.n_held_out} held-out images: {errors}")
    if point is not None:
        lost = "" if point.points_lost is None else f", {point.points_lost:.2f} points lost"
        chosen = ", ".join(f"{rate:.0%} before block {block}" for block, rate in point.schedule.stages.items())
        print(f"within {budget}: {chosen} stay; cosine {point.feature_cosine:.4f}{lost}, {point.gmacs:.3f} GMACs")
    left_out = len(images) - report.n_images - len(report.skipped)
    print(
        f"{len(images)} images in = {report.n_images} used + {len(report.skipped)} skipped + {left_out} without a "
        f"ranking; wrote {out}"
    )
    print_skipped(report.skipped)
