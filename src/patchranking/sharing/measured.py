"""The figures that go with a pruner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

__all__ = ["FIGURES", "Measured"]

FIGURES = (
    "macs_share",
    "top1",
    "top1_dense",
    "feature_cosine",
    "token_cosine",
    "index_overlap_at_10",
    "images_per_second",
    "images_per_second_dense",
)
"""What a row may hold beside its ``keep_rate``."""


@dataclass(frozen=True)
class Measured:
    """What a fit measured on the images that it held out.

    Attributes:
        dataset: Name of the images.
        split: Their split.
        n_train: Images fitted to.
        n_images: Images held out and measured on.
        n_classes: Classes of the zero-shot accuracy; 0 where it was not measured.
        timing_batch: Images of a batch that was timed; 0 where none was.
        environment: The machine and the versions, as in results.json.
        rows: One for each keep rate, the highest first, with the keys of results.json and, where tokens were the target
            of the fit, ``token_cosine``; None for what was not measured.
    """

    dataset: str
    split: str
    n_train: int
    n_images: int
    n_classes: int
    timing_batch: int
    environment: dict[str, str | int | None]
    rows: list[dict[str, float | None]]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict`` after a trip through JSON; raises ValueError for anything else."""
        try:
            found = cls(**{field.name: values[field.name] for field in fields(cls)})
            texts = [found.dataset, found.split, *found.environment]
            counts = [found.n_train, found.n_images, found.n_classes, found.timing_batch]
            rates = [row["keep_rate"] for row in found.rows]
            figures = [value for row in found.rows for value in row.values() if value is not None]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("these are no figures of a fit") from error
        right = all(isinstance(text, str) for text in texts) and all(type(count) is int for count in counts)
        if not right or not all(_number(value) for value in (*rates, *figures)):
            raise ValueError("these are no figures of a fit")
        return found

    def at(self, keep: float) -> dict[str, float | None] | None:
        """The row of a keep rate; None where it was not measured."""
        return next((row for row in self.rows if row["keep_rate"] == keep), None)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
