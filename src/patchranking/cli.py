"""The command line; every command is a function here, its options are the function's arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.utils import logging as hub_logging
from jsonargparse import auto_cli

from patchranking.arguments import spread_lists
from patchranking.data import load_data, of_classes, subset
from patchranking.errors import UserError
from patchranking.evaluation.budget import Budget, choose, measure_curve
from patchranking.evaluation.evaluate import EvaluationSettings
from patchranking.evaluation.evaluate import evaluate as run_evaluation
from patchranking.files import write_json
from patchranking.predictor.fit import fit_pruner
from patchranking.predictor.losses import LossName
from patchranking.predictor.networks import NetworkName
from patchranking.prompts.tokens import TokensName
from patchranking.prompts.tune import TuneSettings
from patchranking.prompts.tune import tune as tune_tokens
from patchranking.pruning.pruner import Pruner
from patchranking.pruning.select import check_keep_rate
from patchranking.ranking.job import rank_dataset
from patchranking.ranking.search import ScoreName, SearchName, SearchSettings
from patchranking.ranking.store import finished_manifest
from patchranking.report.page import write_report
from patchranking.towers.load import LoadedModel, load_model

__all__ = ["main"]

ClassesName = Literal["all", "base", "new"]


def rank(
    model: str,
    data: str,
    out: Path = Path("runs/rank"),
    search: SearchName = "sketched",
    score: ScoreName = "preservation",
    engine: Literal["local", "ray"] = "local",
    block: int = 3,
    window: int = 2,
    stride: int = 1,
    group: int = 4,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Finds which patches of each image matter (Phase I) and stores the rankings; resumes after a kill.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by commas.
        out: Folder for the Parquet shards and the manifest.
        search: How the patches are ranked; sketched-quality takes twice as long as sketched, the others far longer.
        score: What counts as damage: to the image feature, to the true class (needs labels), to the likeliest class.
        engine: Where to compute: in this process, or on a Ray cluster, RAY_ADDRESS or this machine.
        block: Patches are removed before this block.
        window: For leave-out: side of the removed window in patches.
        stride: For leave-out: step between windows in patches.
        group: For iterative: patches removed a round.
        limit: At most so many images, drawn by seed.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    loaded = _load(model, device, seed)
    images = load_data(data, limit, seed, "train")
    _make_folder(out)
    settings = SearchSettings(search, score, block, window, stride, group, seed)
    manifest = rank_dataset(loaded, images, out, settings, engine)
    totals, speed = manifest["totals"], manifest["images_per_second"]
    print(
        f"{totals['in']} images in = {totals['ranked']} ranked + {totals['skipped']} skipped; "
        f"{_number(speed, '.2f')} images/s; wrote {out}"
    )
    if manifest["settings"]["needs_labels"]:
        print("these rankings have seen the true classes: they need labels, and are an oracle on the images ranked")
    for key, reason in manifest["skipped"].items():
        print(f"skipped {key}: {reason}")


def fit(
    model: str,
    data: str,
    out: Path = Path("runs/fit"),
    objective: Literal["both", "distill", "imitate"] = "both",
    rankings: Path | None = None,
    ranked: int = 400,
    keep: float = 0.6,
    budget: str | None = None,
    budget_data: str | None = None,
    steps: int = 300,
    network: NetworkName = "mixer",
    loss: LossName = "listnet",
    search: SearchName = "sketched",
    score: ScoreName = "preservation",
    blocks: list[int] | None = None,
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
        blocks: Patches go before these blocks, equal shares at each: 3 by default, 3 5 7 9 in the paper too.
        epochs: Passes of imitation over the images.
        limit: At most so many images, drawn by seed.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    check_keep_rate(keep)
    if ranked < 1:
        raise UserError(f"At least 1 image must be ranked, not {ranked}; --objective distill ranks none.")
    allowed = None if budget is None else Budget.parse(budget)
    if (budget is None) != (budget_data is None):
        raise UserError("A budget is measured on images that the fit has not seen: give --budget with --budget_data.")
    if rankings is not None and objective == "distill":
        raise UserError("Distillation alone needs no rankings: leave --rankings out, or choose --objective both.")
    if rankings is not None:
        finished_manifest(rankings)
    loaded = _load(model, device, seed)
    images = load_data(data, limit, seed, "train")
    unseen = None if budget_data is None else load_data(budget_data, None, seed)
    _make_folder(out)
    if rankings is None and objective != "distill":
        rankings = out / "rankings"
        settings = SearchSettings(search, score, min(blocks or [3]), seed=seed)
        rank_dataset(loaded, subset(images, ranked, seed), rankings, settings)
    distilled = 0 if objective == "imitate" else steps
    pruner, report = fit_pruner(loaded, images, rankings, keep, blocks, distilled, epochs, network, loss, seed)
    point = None
    if allowed is not None and unseen is not None:
        point = choose(measure_curve(loaded, unseen, pruner, timing_batch=int(allowed.kind == "ms")), allowed)
        pruner = Pruner(pruner.predictor, pruner.base, point.schedule)
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
        stages = ", ".join(f"{rate:.0%} before block {block}" for block, rate in point.schedule.stages.items())
        print(f"within {budget}: {stages} stay; cosine {point.feature_cosine:.4f}{lost}, {point.gmacs:.3f} GMACs")
    left_out = len(images) - report.n_images - len(report.skipped)
    print(
        f"{len(images)} images in = {report.n_images} used + {len(report.skipped)} skipped + {left_out} without a "
        f"ranking; wrote {out}"
    )
    for key, reason in report.skipped.items():
        print(f"skipped {key}: {reason}")


def tune(
    model: str,
    data: str,
    pruner: Path = Path("runs/fit"),
    out: Path = Path("runs/tune"),
    tokens: TokensName = "both",
    shots: int = 16,
    keep: float | None = None,
    number: int = 16,
    depth: int = 1,
    coupled: bool = True,
    own_context: bool = False,
    start: str = "a photo of a",
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    held_out_share: float = 0.0,
    precision: Literal["32-true", "bf16-mixed"] | None = None,
    workers: int = 0,
    classes: ClassesName = "all",
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Tunes learnable tokens on the pruned model with a few shots (Phase III); resumes after a kill.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH or hf:NAME_OR_PATH.
        data: Labelled images: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by
            commas; or a list of captions (.tsv, .csv, .json).
        pruner: Folder written by fit.
        out: Folder for the pruner with its tokens.
        tokens: Text context, visual tokens, or both.
        shots: Images a class; of captioned images, all are used.
        keep: Keep rate to tune at, 1 for the dense model; the pruner's own when omitted.
        number: Tokens of each encoder.
        depth: Blocks that get fresh tokens; 1 is shallow.
        coupled: Make visual tokens a learned linear map of the text tokens, as in the paper.
        own_context: Give each class a text context of its own.
        start: Phrase that text tokens start from, next to the class name; '' for random ones.
        epochs: Passes over the images.
        batch_size: Images a step, over all devices.
        learning_rate: Of SGD.
        held_out_share: Share of the images held out, to stop early and choose the epoch.
        precision: 32-true, or bf16-mixed with float32 master weights, the default on a GPU.
        workers: Processes that read images.
        classes: All classes, the first half of them (base), or the second (new).
        limit: At most so many images, drawn by seed, of which shots are drawn.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    artefact = Pruner.from_pretrained(pruner).untuned
    if keep is not None:
        artefact.keep = keep
    loaded = _load(model, device, seed)
    images = of_classes(load_data(data, limit, seed, "train"), classes)
    _make_folder(out)
    settings = TuneSettings(
        tokens=tokens,
        number=number,
        depth=depth,
        coupled=coupled,
        own_context=own_context,
        start=start,
        shots=shots,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        held_out_share=held_out_share,
        precision=precision,
        workers=workers,
        seed=seed,
    )
    tuned, report = tune_tokens(loaded, images, artefact, out, settings)
    if os.environ.get("RANK", "0") != "0":
        return
    tuned.save_pretrained(out)
    write_json(out / "tune.json", asdict(report) | asdict(settings) | {"data": data, "keep": artefact.keep})
    print(f"loss {report.loss[0]:.4f} in the first epoch, {report.loss[-1]:.4f} in the last")
    if report.held_out:
        print(f"{max(report.held_out):.1%} of {report.n_held_out} held-out images right after epoch {report.epoch}")
    left_out = len(images) - report.n_tuned - report.n_held_out - len(report.skipped)
    print(
        f"{len(images)} images in = {report.n_tuned} tuned on + {report.n_held_out} held out + {len(report.skipped)} "
        f"skipped + {left_out} not drawn; wrote {out}"
    )
    for key, reason in report.skipped.items():
        print(f"skipped {key}: {reason}")


def evaluate(
    model: str,
    data: str,
    out: Path = Path("runs/evaluate"),
    pruner: list[Path] = [],  # noqa: B006
    methods: list[str] = ["random", "cls-attention", "evit", "tome", "golden"],  # noqa: B006
    keep: list[float] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],  # noqa: B006
    templates: list[str] | None = None,
    classes: ClassesName = "all",
    golden_images: int = 100,
    batch_size: int = 32,
    timing_batch: int = 16,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Compares dense, pruner and baselines on labelled images; writes results.json and report.html.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by commas.
        out: Folder for results.json and report.html.
        pruner: Folders written by fit and tune: one not tuned, and at most one of each kind of tokens.
        methods: random, cls-attention, evit, tome and golden, the oracle; dense and the pruner are always measured.
        keep: Keep rates; 1.0 is the dense model.
        templates: Prompt templates with one {}; the data set's own when omitted.
        classes: All classes, the first half of them (base), or the second (new).
        golden_images: Images, drawn by seed, on which the oracle runs.
        batch_size: Images a batch.
        timing_batch: Images a batch when timing; 0 leaves timing out.
        limit: At most so many images, drawn by seed.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    for rate in keep:
        check_keep_rate(rate)
    artefacts = [Pruner.from_pretrained(folder) for folder in pruner]
    loaded = _load(model, device, seed)
    images = of_classes(load_data(data, limit, seed), classes)
    if templates:
        images.templates = tuple(templates)
    settings = EvaluationSettings(
        methods=methods,
        keep_rates=keep,
        golden_images=golden_images,
        batch_size=batch_size,
        timing_batch=timing_batch,
        seed=seed,
    )
    _evaluate(loaded, images, artefacts, settings, out)


def demo(
    out: Path = Path("runs/demo"), images: int = 600, scenes: int = 400, seed: int = 0, device: str = "cpu"
) -> None:
    """Fits, prunes and evaluates the embedded model on generated scenes, in minutes on two cores.

    Args:
        out: Folder for everything the demo makes.
        images: Training scenes to fit to.
        scenes: Test scenes to evaluate on.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    fit("demo", "demo:train", out / "pruner", limit=images, seed=seed, device=device)
    evaluate("demo", "demo:test", out, [out / "pruner"], golden_images=40, limit=scenes, seed=seed, device=device)


def main() -> None:
    """Runs the command line; a user's mistake ends with one sentence and status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hub_logging.set_verbosity_error()
    commands: list[Callable[..., None] | type] = [demo, rank, fit, tune, evaluate]
    try:
        auto_cli(commands, args=spread_lists(sys.argv[1:], commands), prog="patchranking")
    except UserError as error:
        print(f"patchranking: {error}", file=sys.stderr)
        sys.exit(2)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder '{path}': {error.strerror}.") from error


def _load(model: str, device: str, seed: int) -> LoadedModel:
    torch.manual_seed(seed)
    return load_model(model, device)


def _evaluate(loaded: LoadedModel, images: Any, pruners: list[Pruner], settings: EvaluationSettings, out: Path) -> None:
    _make_folder(out)
    results, wall = run_evaluation(loaded, images, pruners, settings)
    write_json(out / "results.json", results)
    write_report(results, wall, out / "report.html", f"{images.name} {images.split}, {loaded.name}")
    _print_table(results["rows"])
    totals = results["images"]
    print(f"{totals['in']} images in = {totals['evaluated']} evaluated + {totals['skipped']} skipped")
    for key, reason in results["skipped"].items():
        print(f"skipped {key}: {reason}")
    print(f"wrote {out / 'results.json'} and {out / 'report.html'}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'method':<16}{'keep':>6}{'top-1':>8}{'cosine':>9}{'GMACs':>8}{'speed-up':>10}")
    for row in rows:
        speed, dense = row["images_per_second"], row["images_per_second_dense"]
        print(
            f"{row['method'] + (' *' if row['oracle'] else ''):<16}{row['keep_rate']:>6.0%}"
            f"{_number(row['top1'], '.2f'):>8}{row['feature_cosine']:>9.4f}{row['gmacs']:>8.3f}"
            f"{_number(speed and dense and speed / dense, '.2f'):>9}x"
        )
    print("* oracle: saw the result before it chose; no deployable method")


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
