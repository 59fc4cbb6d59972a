"""What the commands that pretrain share: pictures, the demo's settings, and what they write and print."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from patchranking.commands.common import number, print_left_out, print_skipped
from patchranking.data import ImageData, load_data, subset
from patchranking.evaluation.accounting import accounting
from patchranking.evaluation.environment import environment
from patchranking.files import write_json
from patchranking.pretrain.contrastive import MODEL

__all__ = ["first_process", "for_the_demo", "pictures", "print_pretraining", "results_of"]

Settings = TypeVar("Settings")

_TESTED = 300
_UNMEASURED = {"knn": None, "linear_probe": None}


def pictures(
    data: str, test: str | None, limit: int | None, seed: int, scenes: int
) -> tuple[ImageData, ImageData | None]:
    """The pictures to train on, and those to measure on; for the demo, so many scenes and some of demo:val."""
    demo = data.partition(":")[0] == "demo"
    images = load_data(data, limit or (scenes if demo else None), seed, "train")
    if test is None and not demo:
        return images, None
    unseen = load_data(test or "demo:val", None, seed)
    return images, subset(unseen, _TESTED, seed) if demo and test is None else unseen


def for_the_demo(settings: Settings, demo: Mapping[str, Any]) -> Settings:
    """The settings with the demo's own where they are the defaults."""
    usual = type(settings)()
    changed = {
        name: value
        for name, value in demo.items()
        if hasattr(usual, name) and getattr(settings, name) == getattr(usual, name)
    }
    return replace(settings, **changed)  # type: ignore[type-var]


def first_process() -> bool:
    """Whether this process is the only one, or the first that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def results_of(
    images: ImageData,
    rows: Sequence[Mapping[str, Any]],
    n_images: int,
    skipped: Mapping[str, str],
    about: Mapping[str, Any],
    more: Mapping[str, Any],
    device: str,
    out: Path,
) -> dict[str, Any]:
    """Writes OUT/results.json, and returns what is in it.

    Args:
        images: The pictures to train on.
        rows: What was measured along the way.
        n_images: Pictures trained on.
        skipped: Key -> why a picture was left out, of any set.
        about: What every row says, such as ``method``, ``arm`` and ``seed``.
        more: What else the file says.
        device: Where it was trained.
        out: The folder.
    """
    about = {"dataset": images.name, "split": images.split, **about, "n_images": n_images}
    known = set(images.keys)
    results = {
        "environment": environment(torch.device(device)),
        "rows": [{**about, **_UNMEASURED, **row} for row in rows],
        **more,
        **accounting(images, n_images, {key: why for key, why in skipped.items() if key in known}),
    }
    write_json(out / "results.json", results)
    return results


def print_pretraining(images: ImageData, results: Mapping[str, Any], skipped: Mapping[str, str], out: Path) -> None:
    """Says what was measured in the end, where every picture went, and what to do with the trained tower."""
    last, measured = results["rows"][-1], "nothing measured"
    if last["knn"] is not None:
        measured = f"k-NN {number(last['knn'], '.1f')} %, linear probe {number(last['linear_probe'], '.1f')} %"
    print(f"{measured} after {last['step']} steps, {last['seconds']:.0f} s")
    left_out = len(images) - last["n_images"]
    print(f"{len(images)} images in = {last['n_images']} trained on + {left_out} skipped; wrote {out / 'report.html'}")
    print_skipped(skipped)
    print_left_out(images)
    print(f"MODEL argument of the trained tower: timm:local-dir:{(out / MODEL).resolve()}")
