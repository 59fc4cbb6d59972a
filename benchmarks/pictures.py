"""What the comparison finds of every single picture, as a table that goes into a Parquet file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from patchranking.data import ImageData
from patchranking.evaluation.neighbours import nearest, overlap
from patchranking.evaluation.retrieval import found
from patchranking.evaluation.rows import caption_features, dense_neighbours
from patchranking.methods.tally import DENSE, Tally
from patchranking.towers.load import LoadedModel

MEASURES = {"top1": 100.0, "feature_cosine": 1.0, "overlap_at_10": 1.0, "recall_at_1": 100.0, "text_recall_at_1": 100.0}
"""Measure of a picture, 0 to 1 -> what its mean is multiplied by in the JSON file, which has hits in percent."""

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        *((name, _NAME) for name in ("dataset", "key", "method", "domain")),
        ("fit", pa.int8()),
        ("macs", pa.float32()),
        ("top1", pa.bool_()),
        *((name, pa.float32()) for name in ("feature_cosine", "overlap_at_10", "recall_at_1")),
        ("text_recall_at_1", pa.bool_()),
    ]
)


class Setting(NamedTuple):
    """One encoding of the comparison; it is the key of its measures in a tally.

    Attributes:
        method: Name of the method.
        domain: ``in`` where the method was fitted to pictures of the test's kind, too, ``out`` where it was fitted to
            other data sets only, None where it is not fitted.
        fit: Number of the fit, or seed of what is drawn at random; 0 where nothing is.
        macs: The share of the dense MACs that is aimed at.
    """

    method: str
    domain: str | None
    fit: int
    macs: float

    @property
    def name(self) -> str:
        """What tells it from the others of a comparison in a file."""
        return f"{self.method} {self.domain} {self.fit} {self.macs:g}"


@dataclass(frozen=True, eq=False)
class Measured:
    """A method at a share of the MACs on a data set.

    Attributes:
        keys: Of the pictures.
        fits: Their numbers.
        values: Measure -> one value a fit and picture, ``(fits, pictures)``, 0 to 1; measures not taken are missing.
    """

    keys: list[str]
    fits: list[int]
    values: dict[str, np.ndarray]

    def of(self, keys: list[str]) -> Measured:
        """The same on some of the pictures."""
        places = {key: place for place, key in enumerate(self.keys)}
        chosen = [places[key] for key in keys]
        return Measured(keys, self.fits, {name: values[:, chosen] for name, values in self.values.items()})


class Group(NamedTuple):
    """What a row of the JSON file is about."""

    dataset: str
    method: str
    domain: str | None
    macs: float


def table_of(
    model: LoadedModel, data: ImageData, dataset: str, tally: Tally, settings: Mapping[Any, Setting]
) -> pa.Table:
    """One row for every picture and encoding.

    Args:
        model: The model.
        data: The pictures.
        dataset: What the table calls them.
        tally: What was measured on them, with the features of all.
        settings: Key of the tally -> the encoding, the dense model among them.
    """
    captions, neighbours, parts = caption_features(model, data, tally, None), dense_neighbours(tally), []
    for key, setting in settings.items():
        measures = {name: tally.values(key, name) for name in ("top1", "feature_cosine")}
        measures["top1"] = {image: value > 0 for image, value in measures["top1"].items()}
        measures |= _by_features(tally, key, captions, neighbours)
        images = sorted(measures["feature_cosine"])
        columns: dict[str, list[Any]] = {
            name: [values.get(image) for image in images] for name, values in measures.items()
        }
        columns["key"] = [data.keys[image] for image in images]
        same = {"dataset": dataset, **setting._asdict()}
        columns |= {name: [value] * len(images) for name, value in same.items()}
        parts.append(pa.table([columns.get(name, [None] * len(images)) for name in SCHEMA.names], schema=SCHEMA))
    return pa.concat_tables(parts).unify_dictionaries()


def _by_features(
    tally: Tally, key: Any, captions: tuple[Tensor, Tensor] | None, neighbours: Tensor | None
) -> dict[str, dict[int, Any]]:
    """Measures that need the features of all pictures; an oracle that ran on some has none."""
    images, index = tally.features(DENSE)
    own, queries = tally.features(key)
    if own != images:
        return {}
    measures: dict[str, Tensor] = {}
    if neighbours is not None:
        measures["overlap_at_10"] = overlap(nearest(queries, index, neighbours.shape[1])[0], neighbours)
    if captions is not None:
        to_image, measures["text_recall_at_1"] = found(queries, *captions, 1)
        owner = captions[1]
        hits = torch.zeros(len(images)).scatter_add(0, owner, to_image.float())
        measures["recall_at_1"] = hits / owner.bincount(minlength=len(images))
    return {name: dict(zip(images, values.tolist(), strict=True)) for name, values in measures.items()}


def grouped(table: pa.Table) -> dict[Group, Measured]:
    """The table by data set, method, domain and share of the MACs, fits side by side."""
    column = {name: table[name].to_pylist() for name in table.column_names}
    rows: dict[Group, dict[int, list[int]]] = {}
    for row, about in enumerate(zip(*(column[name] for name in Group._fields), column["fit"], strict=True)):
        dataset, method, domain, macs, fit = about
        rows.setdefault(Group(dataset, method, domain, round(macs, 4)), {}).setdefault(fit, []).append(row)
    groups = {}
    for group, of_fit in rows.items():
        (keys,) = {tuple(column["key"][row] for row in own) for own in of_fit.values()}
        values = {
            name: np.array([[column[name][row] for row in own] for own in of_fit.values()], np.float64)
            for name in MEASURES
            if column[name][next(iter(of_fit.values()))[0]] is not None
        }
        groups[group] = Measured(list(keys), list(of_fit), values)
    return groups
