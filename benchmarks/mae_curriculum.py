r"""Measures what a curriculum saves a masked autoencoder, against orders that see as many pictures.

    python benchmarks/mae_curriculum.py --out benchmarks/results/mae_curriculum-photos.json

Arms take equally many steps and share seeds, with them weights, crops and hidden patches. ``uniform`` draws from all
pictures alike, with replacement, as every curriculum ends; ``uniform-20`` from a random fifth of them; ``hard-first``
begins with the least typical ones, and ``fixed`` stays at one temperature. The share hidden and the depth of the
decoder are first chosen for ``uniform``, by the mean of k-NN and linear probe on pictures that no other number is of:
half of those to test on, the other half of which is reported. Seconds are those that the process had a core, so other
processes do not count; those of an arm with prototypes include what it took to find these. A run that is killed goes on
after the last finished training.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, main
from sooner import curves_of, own_seconds, sooner

from patchranking.data import ImageData, load_data, subset
from patchranking.data.demo import by_colour
from patchranking.data.halves import of_half
from patchranking.evaluation.environment import environment
from patchranking.files import make_folder
from patchranking.pretrain.features import compute_features
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.masked import PROTOTYPES, MAESettings, mae
from patchranking.pretrain.prototypes import Prototypes, PrototypeSettings, find_prototypes, read_prototypes

ARMS = {
    "uniform": "uniform",
    "uniform-20": "uniform",
    "prototype": "prototype",
    "fixed": "fixed",
    "hard-first": "hard-first",
}
"""Arm -> order."""
MEASURES = ("knn", "linear_probe")
SMALL = MAESettings(
    image_size=48,
    patch_size=8,
    model_args={"embed_dim": 96, "depth": 4, "num_heads": 3},
    decoder_width=64,
)
FIFTH = 0.2
TUNING_SEED = 1000

Row = Mapping[str, Any]


def mae_curriculum(
    train: str = "photos/imagenette/train,photos/flowers/train",
    test: str = "photos/imagenette/val,photos/flowers/val",
    out: Path = Path("benchmarks/results/mae_curriculum-photos.json"),
    limit: int = 4000,
    test_limit: int = 2000,
    seeds: int = 5,
    epochs: float = 20.0,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    evaluations: int = 6,
    masks: list[float] = [0.5, 0.75],  # noqa: B006
    depths: list[int] = [1, 2],  # noqa: B006
    clusters: int = 40,
    device: str = "cpu",
) -> None:
    """Trains every arm with every seed and measures k-NN and linear probe along the way.

    Args:
        train: Pictures to train on; those of the demo are told apart by the colours of their objects.
        test: Pictures of the same classes: one half to choose the share hidden and the depth of the decoder by, the
            other for everything that is reported.
        out: The JSON file.
        limit: Maximum number of pictures to train on.
        test_limit: Maximum number of pictures of both halves.
        seeds: How many.
        epochs: Draws of a training as a multiple of the pictures.
        batch_size: Images per step.
        learning_rate: At 256 images per step.
        evaluations: How often an arm is measured.
        masks: Shares hidden to choose from.
        depths: Decoder's blocks to choose from.
        clusters: How many; prototypes are found by histograms of gradients.
        device: cpu, cuda, cuda:1, mps, ...
    """
    data, unseen = by_colour(load_data(train, limit, 0, "train")), by_colour(load_data(test, test_limit))
    chosen_on, unseen = of_half(unseen, "dev"), of_half(unseen, "test")
    results, runs = Results(out), make_folder(out.with_suffix(".runs"))
    training = TrainSettings(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, evaluations=evaluations)
    trained = partial(_run, runs=runs, device=device, bank=data)
    choices, scores = [(mask, depth) for mask in masks for depth in depths], []
    for mask, depth in choices if len(choices) > 1 else ():
        settings = replace(SMALL, mask=mask, decoder_depth=depth, curriculum="uniform")
        own = replace(training, seed=TUNING_SEED, evaluations=1)
        found = results.once(f"tuning {mask} {depth}", partial(trained, data, chosen_on, settings, own))
        scores.append(np.mean([found[-1][name] for name in MEASURES]))
    tuned = choices[int(np.argmax(scores)) if scores else 0]
    small = replace(SMALL, mask=tuned[0], decoder_depth=tuned[1])
    seconds = results.once("prototypes", partial(find_in_seconds, data, runs, clusters))
    prototypes, rows = read_prototypes(runs / PROTOTYPES), []
    for seed, (arm, order) in product(range(seeds), ARMS.items()):
        pictures = subset(data, max(2, round(FIFTH * len(data))), seed) if arm == "uniform-20" else data
        settings = replace(small, curriculum=order)
        own = replace(training, seed=seed, epochs=epochs * len(data) / len(pictures))
        given = None if order == "uniform" else prototypes
        found = results.once(f"{arm} {seed}", partial(trained, pictures, unseen, settings, own, prototypes=given))
        about = {"arm": arm, "data": f"{data.name}/{data.split}", "seed": seed, "n_images": len(pictures)}
        extra = 0.0 if given is None else seconds
        rows += [about | row | {"seconds": row["seconds"] + extra} for row in found]
    results.write(
        environment(torch.device(device)),
        rows,
        tuned={"mask": tuned[0], "decoder_depth": tuned[1]},
        settings=asdict(small) | asdict(training),
        prototypes=prototypes.about | {"seconds": seconds},
        headline=[
            saving(rows, arm, measure, against)
            for arm in ARMS
            if arm != "uniform"
            for measure in MEASURES
            for against in ("step", "seconds")
        ],
    )
    shutil.rmtree(runs)


def saving(rows: Sequence[Row], arm: str, measure: str, against: str) -> dict[str, Any]:
    """How many times sooner the mean curve of an arm is where that of ``uniform`` ends; see ``sooner``."""
    ours, theirs = (
        curves_of([row for row in rows if row["arm"] == name], measure, against) for name in (arm, "uniform")
    )
    return {"arm": arm, "measure": measure, "against": against} | sooner(ours, theirs, paired=True)


def find_in_seconds(data: ImageData, runs: Path, clusters: int) -> float:
    """Writes the prototypes, and says how many seconds it took to find them."""
    began = time.process_time()
    found = find_prototypes(
        data, compute_features(data, None, runs / "features", workers=0), PrototypeSettings(clusters)
    )
    seconds = time.process_time() - began
    found.write(runs / PROTOTYPES)
    return seconds


def _run(
    data: ImageData,
    test: ImageData,
    settings: MAESettings,
    training: TrainSettings,
    runs: Path,
    device: str,
    bank: ImageData,
    prototypes: Prototypes | None = None,
) -> list[dict[str, Any]]:
    """The evaluations of a training."""
    folder = runs / "now"
    shutil.rmtree(folder, ignore_errors=True)
    report = mae(data, test, folder, settings, training, device, prototypes, bank)
    names = ("share", "step", "seconds", "cpu_seconds", "loss", *MEASURES)
    return [own_seconds({name: row[name] for name in names}, device) for row in report.progress.rows]


if __name__ == "__main__":
    main(mae_curriculum)
