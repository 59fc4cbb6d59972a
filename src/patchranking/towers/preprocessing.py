"""How a model wants its pictures, as numbers: pixels by numpy and Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import floor
from typing import Any, Self

import numpy as np
from PIL import Image

__all__ = ["Preprocessing", "read_preprocessing"]

_FILTERS = tuple(filter.name.lower() for filter in Image.Resampling)


@dataclass(frozen=True)
class Preprocessing:
    """Turns a picture into pixels; ``to_dict`` is the form of open_clip's ``preprocess_cfg``.

    Attributes:
        size: Height and width of the pixels.
        mean: Channel means of the normalisation, of pictures in 0 ... 1.
        std: Channel standard deviations of the normalisation.
        interpolation: Name of one of Pillow's filters, in lower case.
        resize_mode: ``shortest``: the short side is resized and the centre cut out; ``squash``: the picture is resized
            to ``size`` whatever its shape.
        short_side: What the short side is resized to; the height when omitted.
        floors: Whether half a pixel before the centre is left out, as transformers does; otherwise it is rounded.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    short_side: int | None = None
    floors: bool = False

    def __post_init__(self) -> None:
        known = self.interpolation in _FILTERS and self.resize_mode in ("shortest", "squash")
        if not known or (self.resize_mode == "shortest" and self.size[0] != self.size[1]):
            raise ValueError(f"pictures cannot be prepared by {self.interpolation}, {self.resize_mode}, {self.size}")

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """Pixels of a picture, float32 ``(3, height, width)``."""
        picture, (height, width) = picture.convert("RGB"), self.size
        resample = Image.Resampling[self.interpolation.upper()]
        if self.resize_mode == "squash":
            picture = picture.resize((width, height), resample)
        else:
            short, shortest = self.short_side or height, min(picture.size)
            wide, high = (side * short // shortest for side in picture.size)
            left, top = (self._whole((side - cut) / 2) for side, cut in ((wide, width), (high, height)))
            picture = picture.resize((wide, high), resample).crop((left, top, left + width, top + height))
        mean, std = (np.array(one, np.float32) for one in (self.mean, self.std))
        levels = np.asarray(picture, np.float32) / 255
        return np.ascontiguousarray(((levels - mean) / std).transpose(2, 0, 1))

    def _whole(self, offset: float) -> int:
        return int(offset) if self.floors else round(offset)

    def to_dict(self) -> dict[str, Any]:
        """As open_clip writes it; ``short_side`` and ``floors`` are there where open_clip does something else."""
        values: dict[str, Any] = {
            "size": list(self.size),
            "mode": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
        }
        values |= {"interpolation": self.interpolation, "resize_mode": self.resize_mode, "fill_color": 0}
        values |= {} if self.short_side is None else {"short_side": self.short_side}
        return values | ({"floors": True} if self.floors else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; raises ValueError for what it cannot do, such as other colours.

        A ``crop_pct``, as timm has it, is the share of the resized picture that is cut out.
        """
        if values.get("mode", "RGB") != "RGB":
            raise ValueError(f"pictures cannot be prepared in the mode {values['mode']}")
        size: Any = values["size"]
        height, width = (size, size) if isinstance(size, int) else size
        short = values.get("short_side") or floor(height / values.get("crop_pct", 1.0))
        mean, std = tuple(map(float, values["mean"])), tuple(map(float, values["std"]))
        mode = values.get("resize_mode", "shortest")
        return cls(
            (height, width),
            mean,
            std,
            values["interpolation"],
            mode,
            None if short == height else short,
            bool(values.get("floors")),
        )


def read_preprocessing(values: Mapping[str, Any]) -> Preprocessing | None:
    """``Preprocessing.from_dict``, or None where that cannot do what the values say."""
    with suppress(ValueError, KeyError, TypeError):
        return Preprocessing.from_dict(values)
    return None
