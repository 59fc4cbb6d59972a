"""patchranking pretrain mae."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patchranking.commands.pretraining import check_measured, finish, first_process, for_the_demo, pictures
from patchranking.pretrain.filled import reconstructions
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.masked import MAEReport, MAESettings, mae
from patchranking.report.prototypes import write_prototypes

__all__ = ["pretrain_mae"]

_DEMO: dict[str, Any] = {
    "epochs": 50.0,
    "batch_size": 32,
    "learning_rate": 4e-3,
    "image_size": 48,
    "patch_size": 6,
    "model_args": {"embed_dim": 96, "depth": 4, "num_heads": 3},
    "decoder_width": 64,
    "decoder_depth": 1,
    "min_scale": 0.5,
    "clusters": 16,
}
"""What the demo changes of the defaults, so that it ends in three minutes on two cores."""
_SCENES = 600
_SHOWN = 8


def pretrain_mae(
    data: str,
    settings: MAESettings,
    training: TrainSettings,
    test: str | None = None,
    out: Path = Path("runs/mae"),
    fine_tune: int = 0,
    limit: int | None = None,
    device: str = "cpu",
) -> None:
    """Trains a masked autoencoder, on typical pictures first; resumes after a kill.

    Args:
        data: Pictures to train on: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders
            joined by commas. On demo:train, all that is left at its default makes a small encoder and a short training.
        settings: What is trained, and which pictures it sees when.
        training: How.
        test: Pictures of the same classes, to measure nearest neighbours and a linear probe on along the way; demo:val
            for the demo when omitted.
        out: Folder for the prototypes, the progress, the report and the trained tower.
        fine_tune: Epochs of fine-tuning a copy on the classes in the end, to measure on the test pictures; 0 for none.
        limit: Maximum number of pictures to train on, drawn by seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    images, unseen = pictures(data, test, limit, training.seed, _SCENES)
    if images.name == "demo":
        settings, training = for_the_demo(settings, _DEMO), for_the_demo(training, _DEMO)
    check_measured(fine_tune, unseen)
    report = mae(images, unseen, out, settings, training, device)
    if not first_process():
        return
    if report.prototypes is not None and list(report.prototypes.keys) == list(images.keys):
        title = f"Prototypes of {images.name} ({images.split})"
        write_prototypes(report.prototypes, images, out / "prototypes.html", title)
    shown = reconstructions(report.model, images if unseen is None else unseen, _SHOWN, training.seed)
    about = {"method": "mae", "arm": report.sampler.curriculum.order, "seed": training.seed}
    finish(report, about, images, unseen, out, fine_tune, training, device, _more(report), shown)


def _more(report: MAEReport) -> dict[str, Any]:
    """What results.json says besides rows and pictures."""
    sampler = report.sampler
    return {
        "schedule": None,
        "prototype_seconds": report.prototype_seconds,
        "curriculum": asdict(sampler.curriculum),
        "distinct": [sampler.share(epoch) for epoch in range(math.ceil(sampler.epochs))],
    }
