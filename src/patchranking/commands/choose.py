"""patchranking choose."""

from __future__ import annotations

from pathlib import Path

from patchranking.commands.common import print_left_out, print_skipped
from patchranking.data import ImageData, load_data
from patchranking.errors import UserError, check_numbers
from patchranking.evaluation.budget import Budget, OperatingPoint, find_point
from patchranking.files import make_folder
from patchranking.methods.attach import pruner_or_method
from patchranking.pruner import Pruner
from patchranking.towers.load import LoadedModel, load_model

__all__ = ["choose", "save_within"]


def choose(
    pruner: Path,
    data: str,
    budget: str = "0.98 cosine",
    model: str | None = None,
    out: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Chooses the keep rate and the schedule of a pruner by a budget, without a new fit.

    Args:
        pruner: Folder written by fit or tune, a repository on the Hub, or the name of a method that needs no fit.
        data: Images that the fit has not seen: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split],
            folders joined by commas, or a list of captions (.tsv, .csv, .json).
        budget: "0.5 points" of top-1 or "0.5 recall" of captions lost, "0.98 cosine" to the dense feature, "0.95
            overlap" of the 10 nearest neighbours, or "40 ms" for one image.
        model: The MODEL that the pruner was fitted to; the one it names when omitted. A method needs one.
        out: Folder for the pruner as chosen; its own when omitted.
        limit: Maximum number of images, drawn by seed.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    check_numbers({"seed": seed}, seed=0)
    allowed, artefact = Budget.parse(budget), pruner_or_method(pruner)
    if not isinstance(artefact, Pruner):
        if model is None:
            raise UserError(f"'{artefact.name}' belongs to no model: give --model.")
        loaded, images = load_model(model, device), load_data(data, limit, seed)
        point, skipped = find_point(loaded, images, artefact, allowed)
        _print(point, allowed)
        shown = ", ".join(f"{block}: {rate:g}" for block, rate in point.schedule.stages.items())
        print(f'patchranking.attach(model, "{artefact.name}", schedule=patchranking.Schedule({{{shown}}}))')
        print_skipped(skipped)
        print_left_out(images)
        return
    if out is None and not pruner.is_dir():
        raise UserError(f"'{pruner}' is on the Hub: give --out, a folder for the pruner as chosen.")
    folder = make_folder(out or pruner)
    loaded, images = load_model(model or artefact.base.name, device), load_data(data, limit, seed)
    skipped = save_within(loaded, images, artefact.to(loaded.tower.device), allowed, folder)
    print(f"{len(images)} images in = {len(images) - len(skipped)} measured + {len(skipped)} skipped; wrote {folder}")
    print_skipped(skipped)
    print_left_out(images)


def save_within(model: LoadedModel, data: ImageData, pruner: Pruner, budget: Budget, out: Path) -> dict[str, str]:
    """Saves a pruner as a budget has it, and says what that is; returns which images were left out, and why."""
    point, skipped = find_point(model, data, pruner, budget)
    pruner.scheduled(point.schedule).save_pretrained(out)
    _print(point, budget)
    return skipped


def _print(point: OperatingPoint, budget: Budget) -> None:
    chosen = ", ".join(f"{rate:.0%} before block {block}" for block, rate in point.schedule.stages.items())
    more = {
        "points lost": point.points_lost,
        "points of recall@1 lost": point.recall_lost,
        "index overlap": point.index_overlap,
        "ms": point.milliseconds,
    }
    found = "".join(f", {value:.2f} {name}" for name, value in more.items() if value is not None)
    print(
        f"within {budget.value:g} {budget.kind}: {chosen} stay; cosine {point.feature_cosine:.4f}{found}, "
        f"{point.gmacs:.3f} GMACs"
    )
