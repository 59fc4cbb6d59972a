"""What the commands that pretrain share: their pictures, the demo's settings, and how they end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from patchranking.commands.common import number, print_left_out, print_skipped
from patchranking.data import ImageData, load_data, subset
from patchranking.data.demo import by_colour
from patchranking.errors import UserError
from patchranking.evaluation.accounting import accounting
from patchranking.evaluation.environment import environment
from patchranking.files import write_json
from patchranking.pretrain.filled import Reconstruction
from patchranking.pretrain.fine_tune import FineTuneSettings, fine_tune
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.pictures import read_pictures
from patchranking.pretrain.probe import read_labelled
from patchranking.pretrain.report import MODEL, PretrainReport
from patchranking.report.pretraining import write_pretraining
from patchranking.towers.load import load_model

__all__ = ["check_measured", "finish", "first_process", "for_the_demo", "pictures"]

Settings = TypeVar("Settings")

_TESTED = 300


def pictures(
    data: str, test: str | None, limit: int | None, seed: int, scenes: int
) -> tuple[ImageData, ImageData | None]:
    """The pictures to train on, and those to measure on; for the demo, so many scenes and some of demo:val.

    The classes of the demo's scenes are the colours of their objects: to tell the objects apart takes far longer to
    learn.
    """
    demo = data.partition(":")[0] == "demo"
    images = by_colour(load_data(data, limit or (scenes if demo else None), seed, "train"))
    if test is None and not demo:
        return images, None
    unseen = by_colour(load_data(test or "demo:val", None, seed))
    return images, subset(unseen, min(_TESTED, limit or _TESTED), seed) if demo and test is None else unseen


def for_the_demo(settings: Settings, demo: Mapping[str, Any]) -> Settings:
    """The settings with the demo's own where they are the defaults."""
    usual = type(settings)()
    own = {name: value for name, value in demo.items() if hasattr(usual, name)}
    changed = {name: value for name, value in own.items() if getattr(settings, name) == getattr(usual, name)}
    return replace(settings, **changed)  # type: ignore[type-var]


def first_process() -> bool:
    """Whether this process is the only one, or the first that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def check_measured(epochs: int, test: ImageData | None) -> None:
    """Raises UserError where fine-tuning is asked for and there are no pictures to measure it on."""
    if epochs and test is None:
        raise UserError("Fine-tuning is measured on other pictures: give --test.")


def finish(
    report: PretrainReport,
    about: Mapping[str, Any],
    images: ImageData,
    test: ImageData | None,
    out: Path,
    epochs: int,
    training: TrainSettings,
    device: str,
    more: Mapping[str, Any] = {},
    filled: Sequence[Reconstruction] = (),
) -> None:
    """Fine-tunes if it is asked for, writes results.json and report.html, and says what came out.

    Args:
        report: Of the pretraining.
        about: Its ``method``, ``arm`` and ``seed``.
        images: The pictures.
        test: Those to measure on.
        out: The folder of the run.
        epochs: Of fine-tuning; 0 for none.
        training: How it was trained.
        device: cpu, cuda, cuda:1, mps, ...
        more: What else results.json says.
        filled: What a masked autoencoder makes of some pictures.
    """
    tuned = None if test is None or not epochs else _fine_tuned(out, images, test, epochs, training, device)
    where = {"dataset": images.name, "split": images.split, "n_images": report.n_images}
    rows = report.rows({**where, **about})
    skipped = {key: why for key, why in report.skipped.items() if key in set(images.keys)}
    results = {
        "environment": environment(torch.device(device)),
        "rows": rows,
        "budget": report.budget,
        "searched": report.searched,
        "fine_tuned": tuned,
        "costs": report.progress.costs,
        "schedule": [{"start": stage.start, **asdict(stage.compression)} for stage in report.schedule.stages],
        **more,
    }
    write_json(out / "results.json", results | accounting(images, report.n_images, skipped))
    title = f"{about['method']} on {images.name}/{images.split}"
    page = write_pretraining(results, out / "report.html", title, filled)
    last = rows[-1]
    of = " of the objects' colours" if images.name == "demo" else ""
    measured = f"k-NN {number(last['knn'], '.1f')} %, linear probe {number(last['linear_probe'], '.1f')} %{of}"
    print(f"{'nothing measured' if test is None else measured} after {last['step']} steps, {last['seconds']:.0f} s")
    if tuned is not None:
        print(f"{tuned:.1f} % after fine-tuning for {epochs} epochs")
    left_out = len(images) - report.n_images
    print(f"{len(images)} images in = {report.n_images} trained on + {left_out} skipped; wrote {page}")
    print_skipped(report.skipped)
    print_left_out(images)
    print(f"MODEL argument of the trained tower: timm:local-dir:{(out / MODEL).resolve()}")


def _fine_tuned(
    out: Path, images: ImageData, test: ImageData, epochs: int, training: TrainSettings, device: str
) -> float:
    """Accuracy of the trained tower in percent after fine-tuning."""
    trained = load_model(f"timm:local-dir:{(out / MODEL).resolve()}", device)
    pictures = read_pictures(images, trained.tower.image_size[0], training.in_memory)
    settings = FineTuneSettings(epochs, seed=training.seed)
    return 100 * fine_tune(trained.model, pictures, read_labelled(test, trained.preprocess), settings)
