"""Development and test pictures: two fixed halves of a data set, told apart by the names of the pictures."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

from patchranking.data.base import ImageData, chosen_from
from patchranking.errors import UserError

__all__ = ["HalfName", "half_of", "of_half"]

HalfName = Literal["dev", "test", "all"]
"""What choices are made on, what is reported, or both together."""


def half_of(key: str) -> HalfName:
    """``dev`` or ``test``: a bit of the SHA-256 of the picture's file name and that of the folder it is in."""
    name = "/".join(key.split("/")[-2:])
    return "dev" if hashlib.sha256(name.encode()).digest()[0] % 2 else "test"


def of_half(data: ImageData, half: HalfName) -> ImageData:
    """The pictures of one half of a data set, or all of them.

    Raises:
        UserError: If there is no such half, or no picture in it.
    """
    if half not in get_args(HalfName):
        raise UserError(f"Unknown half '{half}': choose from {', '.join(get_args(HalfName))}.")
    if half == "all":
        return data
    chosen = [index for index, key in enumerate(data.keys) if half_of(key) == half]
    if not chosen:
        raise UserError(f"None of the {len(data)} pictures is in the half '{half}': take more pictures.")
    return chosen_from(data, chosen)
