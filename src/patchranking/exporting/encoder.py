"""One interface to exported models, whatever runs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from patchranking.data.images import UnreadableImageError, read_image
from patchranking.errors import UserError, reason
from patchranking.exporting.backends import BACKENDS
from patchranking.exporting.folder import Exported
from patchranking.exporting.quantise import Run
from patchranking.exporting.settings import PrecisionName
from patchranking.exporting.tokenizer import NEEDS_TOKENIZERS
from patchranking.extras import import_extra
from patchranking.towers.preprocessing import Preprocessing

__all__ = ["Encoder"]


class Encoder:
    """An exported model.

    Examples:
        >>> encoder = patchranking.Encoder.from_pretrained("runs/export")  # doctest: +SKIP
        >>> features = encoder.encode_image(["cat.jpg", "dog.jpg"])  # doctest: +SKIP

    Args:
        folder: Written by ``patchranking export``.
        about: What its config.json says.

    Attributes:
        about: What the model is, ``patchranking.exporting.folder.Exported``.
        preprocessing: How pictures become pixels.
    """

    def __init__(self, folder: Path, about: Exported) -> None:
        self.folder, self.about = folder, about
        self.preprocessing = Preprocessing.from_dict(json.loads((folder / about.preprocessing).read_text()))
        self._image = self._load(about.image, about.precision)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Opens the folder of an exported model.

        Raises:
            UserError: If there is none, it is damaged, or what runs it is not installed.
        """
        where = Path(folder).expanduser()
        return cls(where, Exported.read(where))

    def encode_image(self, images: Sequence[Image.Image | str | Path | np.ndarray], batch_size: int = 32) -> np.ndarray:
        """Features of pictures, as the model's library returns them.

        Args:
            images: Pictures, files, or arrays uint8 ``(height, width, 3)``.
            batch_size: Pictures at a time.

        Returns:
            float32 ``(images, features)``; unit vectors where the export normalised them, as for Immich.

        Raises:
            UserError: If a picture cannot be read.
        """
        found = []
        for start in range(0, len(images), _at_least_one(batch_size)):
            some = images[start : start + batch_size]
            found.append(self.run(np.stack([self.preprocessing(_picture(one)) for one in some]))[0])
        return np.concatenate(found) if found else np.zeros((0, self.about.feature_size), np.float32)

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Features ``(batch, features)`` of pixels, float32 ``(batch, 3, height, width)``.

        Where patches are dropped, int64 ``(batch, kept)`` follows, those that reach the end.
        """
        return self._image(pixels)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Unit features of texts, float32 ``(texts, features)``.

        Args:
            texts: The texts.
            batch_size: Texts at a time.

        Raises:
            UserError: If there is no text encoder, or no tokenizer beside it.
        """
        found = []
        for start in range(0, len(texts), _at_least_one(batch_size)):
            found.append(self.encode_ids(self.tokenize(texts[start : start + batch_size])))
        return np.concatenate(found) if found else np.zeros((0, self.about.feature_size), np.float32)

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of texts, int32 ``(texts, context length)``; raises UserError as ``encode_text`` does."""
        return np.array([one.ids for one in self._tokenizer.encode_batch(list(texts))], np.int32)

    def encode_ids(self, ids: np.ndarray) -> np.ndarray:
        """Unit features ``(texts, features)`` of ids, int32 ``(texts, context length)``."""
        return self._text(ids)[0]

    @property
    def class_features(self) -> np.ndarray:
        """Unit features of the classes of ``about.class_names``, under tuned text tokens.

        Raises:
            UserError: If there are none.
        """
        if not self.about.class_names:
            raise UserError(f"'{self.folder}' holds no class features: they come with tuned text tokens.")
        found: np.ndarray = np.load(self.folder / self.about.classes, allow_pickle=False)
        return found

    @cached_property
    def _text(self) -> Run:
        if self.about.context_length is None:
            raise UserError(f"'{self.folder}' has no text encoder: the model '{self.about.model}' has none.")
        return self._load(self.about.text)

    @cached_property
    def _tokenizer(self) -> Any:
        if self._text is not None and self.about.tokenizer not in self.about.files:
            raise UserError(f"'{self.folder}' has no tokenizer that runs by itself: give ids to '{self.about.text}'.")
        return import_extra(*NEEDS_TOKENIZERS).Tokenizer.from_file(str(self.folder / self.about.tokenizer))

    def _load(self, name: str, precision: PrecisionName = "fp32") -> Run:
        try:
            return BACKENDS[self.about.backend].load(self.folder / name, precision)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"'{self.folder / name}' cannot be run ({reason(error)}): export again.") from error


def _at_least_one(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"A batch has 1 or more, not {batch_size}.")
    return batch_size


def _picture(image: Image.Image | str | Path | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"An array of a picture is uint8 (height, width, 3), not {image.dtype} {image.shape}.")
        return Image.fromarray(image)
    try:
        return read_image(image if isinstance(image, Image.Image) else Path(image))
    except UnreadableImageError as error:
        raise UserError(f"'{image}' cannot be read: {error}.") from error
