"""patchranking pretrain contrastive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from patchranking.commands.pretraining import check_measured, finish, first_process, for_the_demo, pictures
from patchranking.pretrain.contrastive import ContrastiveSettings
from patchranking.pretrain.contrastive import contrastive as train
from patchranking.pretrain.loop import TrainSettings

__all__ = ["pretrain_contrastive"]

_DEMO: dict[str, Any] = {
    "epochs": 12.0,
    "batch_size": 64,
    "learning_rate": 4e-3,
    "image_size": 48,
    "patch_size": 6,
    "model_args": {"embed_dim": 96, "depth": 3, "num_heads": 3},
    "head": 256,
    "workers": 1,
    "min_scale": 0.3,
}
"""What the demo changes of the defaults, so that it ends in three minutes on two cores."""
_SCENES = 1000


def pretrain_contrastive(
    data: str,
    settings: ContrastiveSettings,
    training: TrainSettings,
    test: str | None = None,
    out: Path = Path("runs/pretrain"),
    schedule: str = "default",
    fine_tune: int = 0,
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
        fine_tune: Epochs of fine-tuning a copy on the classes in the end, to measure on the test pictures; 0 for none.
        limit: Maximum number of pictures to train on, drawn by seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    images, unseen = pictures(data, test, limit, training.seed, _SCENES)
    if images.name == "demo":
        settings, training = for_the_demo(settings, _DEMO), for_the_demo(training, _DEMO)
    check_measured(fine_tune, unseen)
    report = train(images, unseen, out, settings, training, os.path.expanduser(schedule), device)
    if not first_process():
        return
    about = {"method": settings.method, "arm": schedule, "seed": training.seed}
    finish(report, about, images, unseen, out, fine_tune, training, device)
