"""What every stream of images offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

__all__ = ["Entry", "ImageStream"]


class Entry(NamedTuple):
    """One image of a stream.

    Attributes:
        key: Its name, on one line.
        place: Where its stream finds it, in whatever form that needs.
        lost: Why it cannot be read, where that is known from the start.
    """

    key: str
    place: bytes
    lost: str = ""


class ImageStream(ABC):
    """Images in a stable order, of which no list is kept; it can be pickled and read in other processes.

    Attributes:
        identity: Tells the data from other data, wherever a command is run; more images may join them.
        left_out: What lies among the images and is none of them: reason -> number, complete after ``entries``.
    """

    identity: str
    left_out: Counter[str]

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Lists the images, once, without opening them; a key may come again where the source names it again."""

    @abstractmethod
    def content(self, place: bytes) -> Path | bytes | Image.Image:
        """The file of an image, what is in it, or its picture; raises UnreadableImageError when it cannot be used."""
