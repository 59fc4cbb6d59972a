"""How typical every image is: its distance to the centre of its cluster.

"From Prototypes to General Distributions" (CVPR 2025, arXiv 2411.10685): features are standardised and scaled to length
1, clustered by k-means, and distances scaled to 0 ... 1 within each cluster, so that every cluster has its prototype.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchranking.data import ImageData
from patchranking.data.base import chosen_from
from patchranking.errors import UserError, check_numbers, reason
from patchranking.extras import import_extra
from patchranking.files import replacing
from patchranking.pretrain.features import Features

__all__ = [
    "PrototypeSettings",
    "Prototypes",
    "candidates",
    "cluster",
    "find_prototypes",
    "read_prototypes",
    "standardised",
    "within_clusters",
]

_METADATA = b"patchranking"
_BATCH, _RESTARTS = 2048, 3
_MOST, _EACH = 1024, 10
"""The most clusters that are tried, and the fewest images of one on average."""


@dataclass(frozen=True)
class PrototypeSettings:
    """How to cluster.

    Attributes:
        clusters: How many; auto, the number with the lowest Davies-Bouldin index; or labels, one for each class, an
            oracle.
        seed: Random seed.
    """

    clusters: int | Literal["auto", "labels"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(vars(self), seed=0)
        if self.clusters not in ("auto", "labels"):
            check_numbers(vars(self), clusters=1)


@dataclass(frozen=True)
class Prototypes:
    """How typical the images of a data set are.

    Attributes:
        keys: ``(images,)``.
        clusters: Number of each image's cluster, int32 ``(images,)``; -1 where the image cannot be used.
        distances: Distance to the cluster's centre, 0 of its most typical and 1 of its least typical image, float32
            ``(images,)``; not a number where the image cannot be used.
        errors: Why an image cannot be used, empty where it can.
        about: What made them, ready for JSON: ``model``, ``fingerprint``, ``clusters``, ``davies_bouldin``, ...
    """

    keys: list[str]
    clusters: np.ndarray
    distances: np.ndarray
    errors: list[str]
    about: dict[str, Any]

    @property
    def usable(self) -> np.ndarray:
        """Which images have a distance, boolean ``(images,)``."""
        return self.clusters >= 0

    def write(self, path: Path) -> None:
        """Writes a Parquet file, all or nothing: ``key``, ``cluster``, ``distance``, ``error``."""
        bad = ~self.usable
        columns = {
            "key": pa.array(self.keys, pa.string()),
            "cluster": pa.array(self.clusters, pa.int32(), mask=bad),
            "distance": pa.array(self.distances, pa.float32(), mask=bad),
            "error": pa.array([error or None for error in self.errors], pa.string()),
        }
        table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(self.about)})
        with replacing(path) as partial:
            pq.write_table(table, partial, compression="zstd", write_page_checksum=True)

    def join(self, data: ImageData) -> tuple[ImageData, np.ndarray, dict[str, str]]:
        """Finds the distance of every image by its key.

        Args:
            data: The images; they may be some of those that were clustered, in another order.

        Returns:
            The images that can be used, their distances ``(images,)``, and key -> reason of the others.

        Raises:
            UserError: If an image was not clustered, or none can be used.
        """
        places = {key: place for place, key in enumerate(self.keys)}
        unknown = [key for key in data.keys if key not in places]
        if unknown:
            raise UserError(
                f"{len(unknown)} of the {len(data)} images have no distance, such as '{unknown[0]}': give the images "
                "of which the prototypes are, or run patchranking pretrain prototypes on these."
            )
        rows = np.array([places[key] for key in data.keys], int)
        good = np.flatnonzero(self.usable[rows])
        if not len(good):
            raise UserError(f"None of the {len(data)} images has a distance: give others.")
        bad = {data.keys[index]: self.errors[rows[index]] for index in np.flatnonzero(~self.usable[rows])}
        return (chosen_from(data, good.tolist()) if bad else data), self.distances[rows[good]], bad


def find_prototypes(
    data: ImageData,
    features: Features,
    settings: PrototypeSettings = PrototypeSettings(),
    progress: Callable[[str], None] = lambda _: None,
) -> Prototypes:
    """Clusters images and says how far each is from its cluster's centre.

    Args:
        data: The images.
        features: Their features.
        settings: How to cluster.
        progress: Is told what is being done, now and then.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
        UserError: If there are more clusters than images, or no labels where these are asked for.
    """
    points = standardised(features.vectors)
    own = {key: row for row, key in enumerate(features.keys)}
    if settings.clusters == "labels":
        if data.labels is None:
            raise UserError("These images have no labels to make clusters of: give a number of clusters, or auto.")
        labels = dict(zip(data.keys, data.labels, strict=True))
        found, centres = _of_labels(points, np.array([labels[key] for key in features.keys]))
    else:
        number = settings.clusters
        if number == "auto":
            number = _best_number(points, settings.seed, progress)
        found, centres = cluster(points, number, settings.seed)
    distances = within_clusters(np.linalg.norm(points - centres[found], axis=1), found)
    keys = list(data.keys)
    rows = np.array([own.get(key, -1) for key in keys], int)
    about = {
        **features.about,
        "data": data.name,
        "split": data.split,
        "settings": vars(settings),
        "clusters": len(centres),
        "davies_bouldin": _davies_bouldin(points, found),
        "totals": {"in": len(keys), "out": int((rows >= 0).sum()), "failed": int((rows < 0).sum())},
    }
    return Prototypes(
        keys,
        np.where(rows >= 0, found[rows], -1).astype(np.int32),
        np.where(rows >= 0, distances[rows], np.nan).astype(np.float32),
        [features.failed.get(key, "") for key in keys],
        about,
    )


def read_prototypes(path: str | Path) -> Prototypes:
    """Reads what ``Prototypes.write`` wrote.

    Raises:
        UserError: If there is no such file, or it is of something else.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"There is no file '{file}': give one that patchranking pretrain prototypes wrote.")
    try:
        table = pq.read_table(file, partitioning=None)
        about = json.loads(table.schema.metadata[_METADATA])
        keys, errors = table["key"].to_pylist(), [error or "" for error in table["error"].to_pylist()]
        clusters = table["cluster"].fill_null(-1).to_numpy()
        distances = table["distance"].fill_null(np.nan).to_numpy()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{file}' holds no prototypes ({reason(error)}): give a file that patchranking pretrain prototypes wrote."
        ) from error
    return Prototypes(keys, clusters, distances, errors, about)


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Scales every feature to mean 0 and deviation 1 over the images, then every image to length 1.

    Args:
        vectors: ``(images, features)``.

    Returns:
        Float32 ``(images, features)``; a feature that is the same in all images is 0, and so is an image that is the
        mean of all.
    """
    own = vectors - vectors.mean(0, dtype=np.float64).astype(np.float32)
    deviation = own.std(0, dtype=np.float64).astype(np.float32)
    own /= np.where(deviation > np.abs(vectors).max(0, initial=0) * 1e-6, deviation, np.inf)
    length = np.linalg.norm(own, axis=1, keepdims=True)
    own /= np.where(length > 0, length, 1)
    return np.asarray(own, np.float32)


def cluster(points: np.ndarray, number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """K-means of mini-batches (Sculley, 2010; scikit-learn).

    Args:
        points: ``(images, features)``.
        number: How many clusters.
        seed: Random seed.

    Returns:
        The cluster of each image, int ``(images,)``, and the centres, ``(clusters, features)``; images that are alike
        may make fewer clusters than were asked for.

    Raises:
        UserError: If there are more clusters than images.
    """
    if number > len(points):
        raise UserError(f"{number} clusters are more than the {len(points)} images: ask for fewer.")
    learn = import_extra("sklearn.cluster", "Clustering needs scikit-learn", "pretrain")
    means = learn.MiniBatchKMeans(number, batch_size=_BATCH, n_init=_RESTARTS, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # of fewer different images than clusters
        found = means.fit_predict(points)
    used, found = np.unique(found, return_inverse=True)
    return found, means.cluster_centers_[used]


def candidates(images: int) -> list[int]:
    """Numbers of clusters to try, about 1.4 times as many each: 2, 3, 4, 6, 8, 12, ..."""
    most = max(2, min(_MOST, images // _EACH))
    numbers = sorted({size for power in range(11) for size in (2 * 2**power, 3 * 2**power)})
    return [number for number in numbers if number <= most]


def within_clusters(distances: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Scales distances to 0 ... 1 within each cluster; where all are equal, they are 0.

    Args:
        distances: ``(images,)``.
        clusters: Each image's cluster, 0 or more, ``(images,)``.
    """
    low, high = np.full(clusters.max() + 1, np.inf), np.zeros(clusters.max() + 1)
    np.minimum.at(low, clusters, distances)
    np.maximum.at(high, clusters, distances)
    spread = (high - low)[clusters]
    return np.asarray((distances - low[clusters]) / np.where(spread > 0, spread, 1))


def _of_labels(points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes as clusters, and their means."""
    _, found = np.unique(labels, return_inverse=True)
    centres = np.zeros((found.max() + 1, points.shape[1]))
    np.add.at(centres, found, points)
    return found, centres / np.bincount(found)[:, None]


def _best_number(points: np.ndarray, seed: int, progress: Callable[[str], None]) -> int:
    """The number of clusters with the lowest Davies-Bouldin index; the least where there is none."""
    numbers: Sequence[int] = [number for number in candidates(len(points)) if number < len(points)] or [1]
    best, lowest = numbers[0], np.inf
    for number in numbers:
        index = _davies_bouldin(points, cluster(points, number, seed)[0])
        progress(f"{number} clusters: Davies-Bouldin index {'-' if index is None else f'{index:.3f}'}")
        if index is not None and index < lowest:
            best, lowest = number, index
    return best


def _davies_bouldin(points: np.ndarray, found: np.ndarray) -> float | None:
    """How near clusters are to one another for their widths (Davies and Bouldin, 1979), lower = better apart."""
    if not 1 < len(np.unique(found)) < len(found):
        return None
    learn = import_extra("sklearn.metrics", "Clustering needs scikit-learn", "pretrain")
    return float(learn.davies_bouldin_score(points, found))
