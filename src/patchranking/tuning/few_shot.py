"""A few labelled images of each class, drawn by seed (CoOp's protocol), or all that have captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from patchranking.data import ImageData
from patchranking.data.images import UnreadableImageError
from patchranking.errors import UserError

__all__ = ["few_shots", "hold_out", "passes", "readable"]


def few_shots(data: ImageData, shots: int, seed: int) -> tuple[list[int], dict[str, str]]:
    """Draws images of every class.

    Args:
        data: Labelled images.
        shots: Images per class; a class with fewer gives all it has.
        seed: The same seed draws the same images, and the first of more shots are those of fewer.

    Returns:
        Indices, class after class, and key -> reason of the images drawn that cannot be read; others took their place.

    Raises:
        UserError: If the images have no classes, or a class has no image that can be read.
    """
    if data.labels is None:
        raise UserError("Tuning on shots needs classes: give a folder with one sub-folder a class, or captions.")
    if shots < 1:
        raise UserError(f"At least 1 shot a class is needed, not {shots}.")
    order = np.random.default_rng(seed).permutation(len(data)).tolist()
    of_class: dict[int, list[int]] = {}
    for index in order:
        of_class.setdefault(data.labels[index], []).append(index)
    chosen: list[int] = []
    skipped: dict[str, str] = {}
    for label, name in enumerate(data.class_names):
        found: list[int] = []
        for index in of_class.get(label, []):
            if len(found) == shots:
                break
            if _can_read(data, index, skipped):
                found.append(index)
        if not found:
            raise UserError(
                f"There is no readable image of the class '{name}' to tune on: add one, or leave the class out."
            )
        chosen += found
    return chosen, skipped


def hold_out(indices: Sequence[int], labels: Sequence[int] | None, share: float) -> tuple[list[int], list[int]]:
    """Splits images into those tuned on and those held out: the last ones of each class, at least one stays.

    Args:
        indices: The images.
        labels: Of all images; None splits without classes.
        share: Share of each class held out.
    """
    of_class: dict[int, list[int]] = {}
    for index in indices:
        of_class.setdefault(0 if labels is None else labels[index], []).append(index)
    tuned, held_out = [], []
    for own in of_class.values():
        number = min(len(own) - 1, round(share * len(own)))
        tuned += own[: len(own) - number]
        held_out += own[len(own) - number :]
    return tuned, held_out


def readable(data: ImageData) -> tuple[list[int], dict[str, str]]:
    """Indices of all images that can be read, and key -> reason of the others.

    Raises:
        UserError: If there are fewer than 2.
    """
    skipped: dict[str, str] = {}
    found = [index for index in tqdm(range(len(data)), desc="read", unit="image") if _can_read(data, index, skipped)]
    if len(found) < 2:
        raise UserError(f"Tuning needs 2 images or more that can be read, not {len(found)}.")
    return found, skipped


def _can_read(data: ImageData, index: int, skipped: dict[str, str]) -> bool:
    try:
        data.image(index)
    except UnreadableImageError as error:
        skipped[data.keys[index]] = str(error)
        return False
    return True


def passes(indices: Sequence[int], length: int, seed: int) -> list[int]:
    """Passes over images, each in its own order, until there are this many items."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < length:
        order += rng.permutation(np.asarray(indices)).tolist()
    return order[:length]
