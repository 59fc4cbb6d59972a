"""patchranking pretrain contrastive."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from patchranking.commands.common import number, print_left_out, print_skipped
from patchranking.data import ImageData, load_data, subset
from patchranking.evaluation.accounting import accounting
from patchranking.evaluation.environment import environment
from patchranking.files import write_json
from patchranking.pretrain.contrastive import MODEL, ContrastiveReport, ContrastiveSettings
from patchranking.pretrain.contrastive import contrastive as train
from patchranking.pretrain.loop import TrainSettings
from patchranking.report.pretraining import write_pretraining

__all__ = ["pretrain_contrastive"]

_DEMO: dict[str, Any] = {
    "epochs": 6.0,
    "batch_size": 64,
    "learning_rate": 4e-3,
    "image_size": 96,
    "patch_size": 12,
    "model_args": {"embed_dim": 96, "depth": 4, "num_heads": 3},
    "head": 256,
    "workers": 1,
    "min_scale": 0.3,
}
"""What the demo changes of the defaults, so that it ends in three minutes on two cores."""
_SCENES, _TESTED = 1000, 300

Settings = TypeVar("Settings", ContrastiveSettings, TrainSettings)


def pretrain_contrastive(
    data: str,
    settings: ContrastiveSettings,
    training: TrainSettings,
    test: str | None = None,
    out: Path = Path("runs/pretrain"),
    schedule: str = "default",
    limit: int | None = None,
    device: str = "cpu",
) -> None:
    """Trains a vision transformer without labels, on few tokens while gradients are noisy; resumes after a kill.

    Args:
        data: Pictures to train on: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders
            joined by commas. On demo:train, all that is left at its default makes a small encoder and a short training.
        settings: What is trained, and by which method.
        training: How.
        test: Pictures of the same classes, to measure nearest neighbours and a linear probe on along the way; demo:val
            for the demo when omitted.
        out: Folder for the progress, the report and the trained tower.
        schedule: Of the compression: default, none, two-phase, auto (found by the errors of gradients along a pilot,
            which the budget pays for), or a YAML file such as the schedule.yaml in OUT.
        limit: Maximum number of pictures to train on, drawn by seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    images, unseen = _images(data, test, limit, training.seed)
    if images.name == "demo":
        settings, training = _for_the_demo(settings), _for_the_demo(training)
    report = train(images, unseen, out, settings, training, os.path.expanduser(schedule), device)
    if os.environ.get("RANK", "0") != "0":
        return
    rows = _rows(report, settings, training, schedule, images)
    skipped = {key: why for key, why in report.skipped.items() if key in set(images.keys)}
    results = {
        "environment": environment(torch.device(device)),
        "rows": rows,
        "budget": report.budget,
        "searched": report.searched,
        "costs": report.progress.costs,
        "schedule": [{"start": stage.start, **asdict(stage.compression)} for stage in report.schedule.stages],
    }
    results |= accounting(images, report.n_images, skipped)
    write_json(out / "results.json", results)
    title = f"{settings.method} on {images.name}/{images.split}"
    page = write_pretraining(results, out / "report.html", title)
    last = rows[-1]
    measured = f"k-NN {number(last['knn'], '.1f')} %, linear probe {number(last['linear_probe'], '.1f')} %"
    print(
        f"{measured if unseen is not None else 'nothing measured'} after {last['step']} steps, {last['seconds']:.0f} s"
    )
    left_out = len(images) - report.n_images
    print(f"{len(images)} images in = {report.n_images} trained on + {left_out} skipped; wrote {page}")
    print_skipped(report.skipped)
    print_left_out(images)
    print(f"MODEL argument of the trained tower: timm:local-dir:{(out / MODEL).resolve()}")


def _images(data: str, test: str | None, limit: int | None, seed: int) -> tuple[ImageData, ImageData | None]:
    demo = data.partition(":")[0] == "demo"
    images = load_data(data, limit or (_SCENES if demo else None), seed, "train")
    if test is None and not demo:
        return images, None
    unseen = load_data(test or "demo:val", None, seed)
    return images, subset(unseen, _TESTED, seed) if demo and test is None else unseen


def _for_the_demo(settings: Settings) -> Settings:
    """The settings with the demo's own where they are the defaults."""
    usual = type(settings)()
    own = {name: value for name, value in _DEMO.items() if hasattr(usual, name)}
    return replace(settings, **{name: v for name, v in own.items() if getattr(settings, name) == getattr(usual, name)})


def _rows(
    report: ContrastiveReport, settings: ContrastiveSettings, training: TrainSettings, schedule: str, images: ImageData
) -> list[dict[str, Any]]:
    about = {
        "dataset": images.name,
        "split": images.split,
        "method": settings.method,
        "arm": schedule,
        "seed": training.seed,
        "n_images": report.n_images,
    }
    none = {"knn": None, "linear_probe": None}
    return [about | none | row | {"budget": report.searched + row["budget"]} for row in report.progress.rows]
