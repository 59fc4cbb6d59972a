r"""Tuning with a few shots: untuned, text, visual and both kinds of tokens, on the dense and on the pruned model.

    python benchmarks/few_shot.py MODEL '[TRAIN, ...]' '[TEST, ...]' --pruner DIR \
        --out benchmarks/results/few_shot-NAME.json

Every finished tuning is written, and one that is killed goes on where it stopped. Every keep rate is tuned at itself.
"""

from __future__ import annotations

import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from patchranking.data import ImageData, load_data, read_batches
from patchranking.evaluation.environment import environment
from patchranking.files import as_file_name, write_json
from patchranking.methods.tally import Tally, zero_shot_classes
from patchranking.pruner import Pruner
from patchranking.pruning.attach import attach_reductions
from patchranking.towers.load import LoadedModel, load_model
from patchranking.tuning.tune import CHECKPOINT, TuneSettings, tune


def main(
    model: str,
    train: list[str],
    test: list[str],
    pruner: Path = Path("runs/fit"),
    out: Path = Path("benchmarks/results/few_shot.json"),
    tokens: list[str] = ["text", "visual", "both"],  # noqa: B006
    keep: list[float] = [1.0, 0.6, 0.5],  # noqa: B006
    shots: int = 16,
    num_tokens: int = 16,
    epochs: int = 20,
    learning_rate: float = 2e-3,
    augment: bool = True,
    seeds: int = 3,
    train_limit: int | None = None,
    test_limit: int | None = None,
    work: Path = Path("runs/few_shot"),
) -> None:
    """Runs the comparison.

    Args:
        model: The MODEL argument of the command line.
        train: Labelled images to draw shots from, one DATA argument for every test set.
        test: DATA arguments to test on.
        pruner: Folder written by patchranking fit.
        out: The JSON file.
        tokens: Kinds of tokens to tune.
        keep: Keep rates; 1 is the dense model.
        shots: Images a class.
        num_tokens: Tokens of each encoder.
        epochs: Passes over the images.
        learning_rate: Of SGD.
        augment: Whether to tune on random crops.
        seeds: Seeds 0, 1, ... of shots, tokens and order.
        train_limit: At most so many images of each training set.
        test_limit: At most so many images of each test set.
        work: Folder for what is being tuned.
    """
    loaded = load_model(model)
    fitted = Pruner.from_pretrained(pruner)
    partial = out.with_suffix(".partial")
    done: dict[str, dict[str, Any]] = json.loads(partial.read_text()) if partial.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)

    kinds = [("none", None), *((kind, seed) for seed in range(seeds) for kind in tokens)]
    for train_name, test_name in zip(train, test, strict=True):
        images, tests = load_data(train_name, train_limit, 0), load_data(test_name, test_limit, 0)
        for (kind, seed), rate in product(kinds, keep):
            name = f"{test_name} {rate} {kind} {seed}"
            if name in done:
                continue
            fitted.keep = rate
            row: dict[str, Any] = {"dataset": f"{tests.name}/{tests.split}", "tuned": kind, "keep_rate": rate}
            if seed is None:
                row |= {"shots": 0, "seed": None} | _measure(loaded, fitted, tests)
            else:
                settings = TuneSettings(
                    tokens=kind,
                    num_tokens=num_tokens,
                    shots=shots,
                    epochs=epochs,
                    learning_rate=learning_rate,
                    augment=augment,
                    seed=seed,
                )
                folder = work / as_file_name(f"{model} {name}")
                row |= _tuned(loaded, fitted, images, tests, folder, settings)
            done[name] = row
            write_json(partial, done)
            print(name, row["top1"], flush=True)
    write_json(out, {"environment": environment(loaded.tower.device), "rows": list(done.values())})
    partial.unlink()


def _tuned(
    model: LoadedModel, fitted: Pruner, images: ImageData, tests: ImageData, folder: Path, settings: TuneSettings
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    tuned, report = tune(model, images, fitted, folder, settings)
    about = {"shots": settings.shots, "seed": settings.seed, "epochs": settings.epochs, "loss": report.loss[-1]}
    seconds = time.perf_counter() - began
    found = _measure(model, tuned, tests)
    (folder / CHECKPOINT).unlink()
    return about | {"seconds": seconds} | found


@torch.inference_mode()
def _measure(model: LoadedModel, pruner: Pruner, data: ImageData) -> dict[str, Any]:
    """Top-1 with a pruner's patches and tokens."""
    untouched = pruner.tuned in ("none", "visual")
    classes = zero_shot_classes(model, data) if untouched else pruner.text_features(data.class_names)
    assert data.labels is not None
    tally, tower = Tally(classes), model.tower
    for images, pixels in read_batches(data, model.preprocess, 32, {}):
        with attach_reductions(tower, pruner.reductions()):
            features = tower(pixels.to(tower.device))
        labels = torch.tensor([data.labels[image] for image in images], device=tower.device)
        tally.add(("tuned", pruner.keep), images, features, features, labels, None)
    key = ("tuned", pruner.keep)
    return {"n_images": tally.count(key), "top1": tally.mean(key, "top1")}


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
