"""An exported model beside the methods that run in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch

from patchranking.data import ImageData
from patchranking.errors import UserError
from patchranking.exporting.encoder import Encoder
from patchranking.exporting.folder import Exported, is_exported
from patchranking.methods.batch import Batch
from patchranking.methods.method import Encoded, Encoding, Fixed, Style
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower
from patchranking.towers.identity import BaseModel

__all__ = ["ExportedFile"]


class ExportedFile(Fixed):
    """The file of an exported image encoder as a method.

    Args:
        encoder: The exported model.
    """

    name = "exported"
    style = Style("#7a5195", "P")

    def __init__(self, encoder: Encoder) -> None:
        about = encoder.about
        self.encoder, self.keep, self.tuned = encoder, about.keep, about.tuned
        self.fingerprint = about.fingerprint

    @classmethod
    def at_path(cls, path: str) -> Self | None:
        """The exported model in a folder; None where a MODEL argument names something else."""
        return cls(Encoder.from_pretrained(path)) if is_exported(Path(path).expanduser()) else None

    @property
    def about(self) -> Exported:
        """What the model is."""
        return self.encoder.about

    def check(self, tower: VisionTower, data: ImageData | None = None) -> None:
        """Raises UserError when it was made of another model, or tuned for other classes than those of the images."""
        try:
            BaseModel.from_dict(dict(self.about.base_model)).check(tower)
        except UserError as error:
            raise UserError(
                f"'{self.encoder.folder}' was made of '{self.about.model}', and what has that name here is another "
                "model: export again."
            ) from error
        classes = self.about.class_names
        if data is not None and data.labels is not None and classes and classes != data.class_names:
            raise UserError(
                f"'{self.encoder.folder}' has text features of other classes than {data.name}: export with --classes."
            )

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        about = self.about
        own = schedule.at(1.0) if about.schedule is None else Schedule.from_dict(about.schedule)
        classes = torch.from_numpy(self.encoder.class_features) if about.class_names else None

        def run(batch: Batch) -> Encoded:
            features, *kept = self.encoder.run(batch.pixels.float().cpu().numpy())
            return Encoded(torch.from_numpy(features), torch.from_numpy(kept[0]) if kept else None)

        return Encoding(tower, own, run, classes=classes, share=about.macs_share)
