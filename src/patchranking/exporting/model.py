"""An exported model in the place of one that a library loads, wherever pictures and texts are only encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from patchranking.errors import UserError
from patchranking.exporting.encoder import Encoder
from patchranking.exporting.folder import is_exported
from patchranking.towers import TextTower
from patchranking.towers.load import LoadedModel, load_model
from patchranking.towers.preprocessing import Preprocessing

__all__ = ["ExportedModel", "ReadyModel", "open_model"]


@dataclass(frozen=True)
class _Pixels:
    """A preprocessing as the libraries have it, from a picture to a tensor."""

    preprocessing: Preprocessing

    def __call__(self, picture: Image.Image) -> Tensor:
        return torch.from_numpy(self.preprocessing(picture))


@dataclass(frozen=True)
class ExportedModel:
    """What ``LoadedModel`` says of a model that is seen from outside only.

    Attributes:
        name: The folder.
        encoder: What runs it, on the CPU.
        preprocess: Turns an RGB picture into pixels ``(3, height, width)``, float32.
        text: Texts to unit features; None without a text encoder or a tokenizer that runs by itself.
    """

    name: str
    encoder: Encoder
    preprocess: Callable[[Image.Image], Tensor]
    text: TextTower | None

    @classmethod
    def of(cls, folder: str) -> Self:
        """Opens a folder; raises UserError as ``Encoder.from_pretrained`` does."""
        encoder = Encoder.from_pretrained(folder)
        text, length = None, encoder.about.context_length
        if length is not None and encoder.about.tokenizer in encoder.about.files:
            text = TextTower(
                lambda texts: torch.from_numpy(encoder.tokenize(texts)),
                lambda ids: torch.from_numpy(encoder.encode_ids(ids.numpy())),
                length,
            )
        return cls(folder, encoder, _Pixels(encoder.preprocessing), text)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.encoder.preprocessing.size

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def mean(self) -> tuple[float, ...]:
        """As in ``LoadedModel``."""
        return self.encoder.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """As in ``LoadedModel``."""
        return self.encoder.preprocessing.std

    @property
    def fingerprint(self) -> str:
        """As in ``Exported``."""
        return self.encoder.about.fingerprint


ReadyModel = LoadedModel | ExportedModel


def open_model(name: str, device: str = "cpu") -> ReadyModel:
    """A MODEL argument, which may be the folder of an exported model.

    Raises:
        UserError: As ``load_model`` and ``Encoder.from_pretrained`` do, or if another device is asked for than a file
            runs on.
    """
    if not is_exported(Path(name).expanduser()):
        return load_model(name, device)
    if torch.device(device).type != "cpu":
        raise UserError(f"'{name}' is an exported model, which runs on the CPU: leave --device out.")
    return ExportedModel.of(name)
