"""A page of clusters: their most typical images, their least typical ones, and what a training sees of them when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from patchranking.data import ImageData
from patchranking.data.images import UnreadableImageError
from patchranking.pretrain.curriculum import Curriculum
from patchranking.pretrain.prototypes import Prototypes
from patchranking.pretrain.sampler import CurriculumSampler
from patchranking.report.template import write_page
from patchranking.report.text import number, percent
from patchranking.report.wall import source

__all__ = ["write_prototypes"]

_SIDE = 112
_CLUSTERS, _EACH, _DRAWN, _NAMED = 24, 5, 12, 20
_STAGES = {0: "At the start", 2: "After a quarter", 4: "From the middle on"}
"""Of eight epochs: epoch -> when that is."""
_EPOCHS = 8


def write_prototypes(prototypes: Prototypes, data: ImageData, out: Path, title: str) -> Path:
    """Writes the page, all in one file.

    Args:
        prototypes: Clusters and distances.
        data: The images they are of, in the same order.
        out: The HTML file to write; it appears complete or not at all.
        title: Heading of the page.

    Returns:
        ``out``.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    about, totals = prototypes.about, prototypes.about["totals"]
    sizes = np.bincount(prototypes.clusters[prototypes.usable])
    largest = np.argsort(-sizes, kind="stable")[:_CLUSTERS]
    index = about["davies_bouldin"]
    failed = [(key, error) for key, error in zip(prototypes.keys, prototypes.errors, strict=True) if error]
    return write_page(
        out,
        "prototypes.html.j2",
        title=title,
        tiles=[
            (number(totals["out"], 0), "images", f"{number(totals['failed'], 0)} cannot be used" * bool(failed)),
            (number(len(sizes), 0), "clusters", f"{number(sizes.min(), 0)} to {number(sizes.max(), 0)} images each"),
            (number(index, 2), "Davies-Bouldin index", "lower: further apart for their width"),
        ],
        stages=_stages(prototypes, data),
        said=f"The {len(largest)} largest of {len(sizes):,}." if len(sizes) > len(largest) else "",
        clusters=[_cluster(prototypes, data, own) for own in largest.tolist()],
        skipped=failed[:_NAMED],
        more=max(0, len(failed) - _NAMED),
        about={
            "features": about["model"],
            "clusters": f"{about['settings']['clusters']}, seed {about['settings']['seed']}",
            "images": f"{about['data']} ({about['split']})",
        },
    )


def _stages(prototypes: Prototypes, data: ImageData) -> list[dict[str, Any]]:
    """What the default curriculum draws as the training goes on."""
    rows = np.flatnonzero(prototypes.usable)
    distances = prototypes.distances[rows]
    sampler = CurriculumSampler(distances, _EPOCHS, Curriculum())
    stages = []
    for epoch, when in _STAGES.items():
        drawn, temperature = sampler.draw(epoch), sampler.temperature(epoch)
        hot = math.isinf(temperature)
        stages.append(
            {
                "when": when,
                "share": percent(sampler.share(epoch)),
                "temperature": "all alike" if hot else f"temperature {number(temperature, 3)}",
                "distance": number(float(distances[drawn].mean()), 2),
                "shown": _shown(prototypes, data, rows[drawn[:_DRAWN]].tolist()),
            }
        )
    return stages


def _cluster(prototypes: Prototypes, data: ImageData, own: int) -> dict[str, Any]:
    members = np.flatnonzero(prototypes.clusters == own)
    ordered = members[np.argsort(prototypes.distances[members], kind="stable")]
    return {
        "images": number(len(members), 0),
        "classes": _classes(data, members.tolist()),
        "typical": _shown(prototypes, data, ordered[:_EACH].tolist()),
        "atypical": _shown(prototypes, data, ordered[_EACH:][::-1][:_EACH].tolist()),
    }


def _classes(data: ImageData, members: Sequence[int]) -> str:
    """The most frequent classes of some images, and their shares; nothing without labels."""
    if data.labels is None:
        return ""
    labels, counts = np.unique([data.labels[index] for index in members], return_counts=True)
    first = np.argsort(-counts, kind="stable")[:2]
    named = [(int(labels[place]), counts[place] / len(members)) for place in first]
    return ", ".join(f"{data.class_names[label]} {percent(round(share, 2))}" for label, share in named if label >= 0)


def _shown(prototypes: Prototypes, data: ImageData, indices: Sequence[int]) -> list[dict[str, str]]:
    """Images that can still be read, as they stand on the page."""
    found = []
    for index in indices:
        try:
            picture = ImageOps.fit(data.image(index), (_SIDE, _SIDE), Image.Resampling.LANCZOS)
        except UnreadableImageError:
            continue
        distance = number(float(prototypes.distances[index]), 2)
        found.append({"key": prototypes.keys[index], "distance": distance, "picture": source(picture)})
    return found
