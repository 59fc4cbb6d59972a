"""What the commands that pretrain share: how they end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from patchranking.commands.common import number, print_left_out, print_skipped
from patchranking.data import ImageData
from patchranking.errors import UserError
from patchranking.evaluation.accounting import accounting
from patchranking.evaluation.environment import environment
from patchranking.files import write_json
from patchranking.pretrain.fine_tune import FineTuneSettings, fine_tune
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.pictures import read_pictures
from patchranking.pretrain.probe import read_labelled
from patchranking.pretrain.report import MODEL, PretrainReport
from patchranking.report.pretraining import write_pretraining
from patchranking.towers.load import load_model

__all__ = ["check_measured", "finish"]


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
    }
    write_json(out / "results.json", results | accounting(images, report.n_images, skipped))
    page = write_pretraining(results, out / "report.html", f"{about['method']} on {images.name}/{images.split}")
    last = rows[-1]
    measured = f"k-NN {number(last['knn'], '.1f')} %, linear probe {number(last['linear_probe'], '.1f')} %"
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
