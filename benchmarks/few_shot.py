r"""Tuning with a few shots: untuned, text, visual and both kinds of tokens, on the dense and on the pruned model.

    python benchmarks/few_shot.py demo demo:test-sketch --train demo:train-sketch --pruner runs/demo-pruner \
        --num_tokens 4 --learning_rate 0.02 --epochs 5 --augment false --train_limit 4000 --limit 1000 \
        --out benchmarks/results/few_shot-demo.json

Every keep rate is tuned at itself. A run that is killed goes on within the tuning where it stopped.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from common import DEFAULTS, Results, main

from patchranking.data import ImageData, load_data
from patchranking.errors import UserError
from patchranking.evaluation.environment import environment
from patchranking.files import as_file_name
from patchranking.methods import PatchRanking
from patchranking.methods.measure import measure
from patchranking.prompts.tokens import TokensName
from patchranking.pruner import Pruner
from patchranking.towers.load import LoadedModel, load_model
from patchranking.tuning.tune import CHECKPOINT, TuneSettings, tune


def few_shot(
    model: str,
    data: list[str],
    train: list[str] = [],  # noqa: B006
    pruner: Path = Path("runs/fit"),
    out: Path = Path("benchmarks/results/few_shot.json"),
    tokens: list[TokensName] = ["text", "visual", "both"],  # noqa: B006
    keep: list[float] = [1.0, 0.6, 0.5],  # noqa: B006
    shots: int = 16,
    num_tokens: int = 16,
    epochs: int = 20,
    learning_rate: float = 2e-3,
    augment: bool = True,
    seeds: int = 3,
    limit: int | None = None,
    train_limit: int | None = None,
    work: Path = Path("runs/few_shot"),
) -> None:
    """Tunes tokens and tests them.

    Args:
        model: The MODEL argument of the command line.
        data: DATA arguments to test on, with classes.
        train: One DATA argument for each of them to draw shots from.
        pruner: Folder written by patchranking fit.
        out: The JSON file.
        tokens: Kinds of tokens to tune.
        keep: Keep rates; 1 is the dense model.
        shots: Images per class.
        num_tokens: Tokens of each encoder.
        epochs: Passes over the images.
        learning_rate: Of SGD.
        augment: Tune on random crops.
        seeds: Seeds 0, 1, ... of shots, tokens and order.
        limit: At most so many images of each test set.
        train_limit: At most so many images of each training set.
        work: Folder for what is being tuned.
    """
    if len(train) != len(data):
        raise UserError(f"Give one --train for each DATA, in the same order: {len(data)}, not {len(train)}.")
    loaded, fitted, results = load_model(model), Pruner.from_pretrained(pruner), Results(out)
    rows = []
    for name, train_name in zip(data, train, strict=True):
        test, images = load_data(name, limit), load_data(train_name, train_limit, default_split="train")
        for rate in keep:
            rows.append(results.once(f"{name} {rate} none", partial(_untuned, loaded, test, fitted.at(rate))))
        for seed, kind, rate in product(range(seeds), tokens, keep):
            settings = TuneSettings(
                tokens=kind,
                num_tokens=num_tokens,
                shots=shots,
                epochs=epochs,
                learning_rate=learning_rate,
                augment=augment,
                seed=seed,
            )
            unit = f"{name} {rate} {kind} {seed}"
            folder = work / as_file_name(f"{model} {unit}")
            tuned = partial(_tuned, loaded, test, fitted.at(rate), images, folder, settings)
            rows.append(results.once(unit, tuned))
    results.write(environment(loaded.tower.device), rows, defaults=DEFAULTS)


def _untuned(model: LoadedModel, test: ImageData, pruner: Pruner) -> dict[str, Any]:
    return _row(model, test, pruner, {"shots": 0, "seed": None})


def _tuned(
    model: LoadedModel, test: ImageData, pruner: Pruner, images: ImageData, folder: Path, settings: TuneSettings
) -> dict[str, Any]:
    began = time.perf_counter()
    tuned, report = tune(model, images, pruner, folder, settings)
    about = {"shots": settings.shots, "seed": settings.seed, "epochs": settings.epochs, "loss": report.loss[-1]}
    row = _row(model, test, tuned, about | {"seconds": time.perf_counter() - began})
    (folder / CHECKPOINT).unlink()
    return row


def _row(model: LoadedModel, test: ImageData, pruner: Pruner, about: dict[str, Any]) -> dict[str, Any]:
    encoding = PatchRanking.of(pruner, model, test).at(model.tower, pruner.schedule)
    tally = measure(model, test, {"pruned": encoding})
    return {
        "dataset": f"{test.name}/{test.split}",
        "tuned": pruner.tuned,
        "keep_rate": pruner.keep,
        **about,
        "n_images": tally.count("pruned"),
        "top1": tally.mean("pruned", "top1"),
    }


if __name__ == "__main__":
    main(few_shot)
