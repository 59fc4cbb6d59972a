"""The rows of results.json: accuracy, agreement with the dense model, cost and speed of every method."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchranking.data import ImageData
from patchranking.evaluation.bootstrap import interval
from patchranking.evaluation.cost import count_macs, images_per_second, noise
from patchranking.evaluation.neighbours import knn_top1, nearest, overlap
from patchranking.evaluation.retrieval import recall
from patchranking.methods import Encoding, Method
from patchranking.methods.batch import Batch
from patchranking.methods.method import Fixed
from patchranking.methods.tally import DENSE, Tally
from patchranking.prompts.insert import prompted_features
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.macs import analytic_macs
from patchranking.towers.load import LoadedModel

__all__ = [
    "Entry",
    "caption_features",
    "comparable",
    "dense_neighbours",
    "encoding_macs",
    "index_measures",
    "ran_densely",
    "recalls",
    "rest_macs",
    "rows_of",
]

_NEIGHBOURS = 10
_RECALLS = (1, 5, 10)
_TEXTS_PER_BATCH = 256


@dataclass(frozen=True, eq=False)
class Entry:
    """What one row is about; it is the key of its measures in a tally, but for the dense model.

    Attributes:
        method: The method.
        keep: The keep rate.
        encoding: The method at this keep rate.
    """

    method: Method
    keep: float
    encoding: Encoding

    @property
    def key(self) -> Hashable:
        """The key of its measures in a tally."""
        return DENSE if self.method.name == DENSE else self

    @property
    def shown_as(self) -> str:
        """The method of its row: tokens may be tuned of the dense model, too."""
        return DENSE if self.keep == 1 and not isinstance(self.method, Fixed) else self.method.name

    @property
    def name(self) -> str:
        """What tells it from the others of an evaluation in a file."""
        return f"{self.method.name} {self.method.tuned} {self.keep:g}"


def comparable(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Splits the rows of one data set: those to compare, and those of an oracle that ran on fewer images."""
    most = max((row.get("n_images") or 0 for row in rows), default=0)
    apart = [row for row in rows if row["oracle"] and (row.get("n_images") or most) < most]
    return [row for row in rows if row not in apart], apart


def encoding_macs(encoding: Encoding, pixels: Tensor) -> float:
    """MACs per image of a method, scoring and merging included, and what an oracle looks up left out."""
    batch = Batch(encoding.tower, pixels)
    encoding.search(batch)
    return count_macs(lambda _: encoding.run(batch), pixels)


def rest_macs(encoding: Encoding, pixels: Tensor) -> float:
    """MACs of one image that runs densely once more, from the first block of the schedule on."""
    batch = Batch(encoding.tower, pixels)
    batch.entering(encoding.schedule.block)
    return count_macs(lambda _: batch.features, pixels)


def ran_densely(tally: Tally, entry: Entry) -> float | None:
    """The share of the images that ran densely, too; None without a fallback."""
    if entry.encoding.fallback is None:
        return None
    errors = tally.values(entry.key, "estimated_error").values()
    return sum(error > entry.encoding.fallback for error in errors) / len(errors)


@torch.inference_mode()
def rows_of(
    model: LoadedModel, data: ImageData, tally: Tally, entries: Sequence[Entry], timing_batch: int, seed: int
) -> list[dict[str, Any]]:
    """One row for every method and keep rate, the dense model first.

    Accuracies and recalls are percentages. ``top1_interval`` is a bootstrap interval of 95 %, ``top1_change_interval``
    that of the difference to the dense model on the same images. ``recall_at_k`` finds the picture of a caption,
    ``text_recall_at_k`` a caption of a picture. For ``index_overlap_at_10`` and ``knn_top1`` the method's features
    query an index of the dense model's. ``top1_dense`` is of the images that the method ran on. With a ``fallback``,
    MACs are the mean over the images, of which the share ``ran_densely`` ran densely, too; no time is taken, since
    random pixels do not say how many would.

    Args:
        model: The dense model.
        data: The images.
        tally: What was measured on them.
        entries: What the rows are about, the dense model among them.
        timing_batch: Images per batch when timing; 0 leaves timing out.
        seed: Seed of the bootstrap and of the pixels that are timed.
    """
    pixels = noise(model.tower, max(1, timing_batch), seed)
    dense = next(entry for entry in entries if entry.key == DENSE)
    dense_macs = encoding_macs(dense.encoding, pixels[:1])
    captions = {
        prompts: caption_features(model, data, tally, prompts) for prompts in {e.method.prompts for e in entries}
    }
    speeds = _speeds(entries, dense, pixels) if timing_batch else {}
    neighbours = dense_neighbours(tally)
    return [
        {
            "model": model.name,
            "dataset": data.name,
            "split": data.split,
            "n_images": tally.count(entry.key),
            "seed": seed,
            "method": entry.shown_as,
            "keep_rate": entry.keep,
            **_schedule(entry),
            "tuned": entry.method.tuned,
            "oracle": entry.method.oracle,
            **_accuracy(tally, entry.key, seed),
            **index_measures(tally, entry.key, neighbours),
            **recalls(tally, entry.key, captions[entry.method.prompts]),
            **_macs(entry, pixels[:1], dense_macs, ran_densely(tally, entry)),
            "images_per_second": speeds.get(entry),
            "images_per_second_dense": speeds.get((DENSE, entry.keep)),
            **({"same_images": _same_images(tally, entry, entries)} if entry.method.oracle else {}),
        }
        for entry in entries
    ]


def _schedule(entry: Entry) -> dict[str, Any]:
    schedule, patches = entry.encoding.schedule, entry.encoding.tower.num_patches
    left = list(schedule.kept(patches).values())[-1]
    return {"kept_patches": left, "schedule": None if entry.keep == 1 else schedule.to_dict()}


def _macs(entry: Entry, pixels: Tensor, dense_macs: float, again: float | None) -> dict[str, float | None]:
    visual = None if entry.method.prompts is None else entry.method.prompts.visual()
    tokens, tower = 0 if visual is None else visual.shape[1], entry.encoding.tower
    encoding = entry.encoding.first or entry.encoding
    rest = rest_macs(encoding, pixels) * again if again else 0.0
    macs = encoding_macs(encoding, pixels) if encoding.share is None else encoding.share * dense_macs
    formula = analytic_macs(tower, tower.feature_size, encoding.schedule, tokens, encoding.inside)
    return {
        "gmacs": (macs + rest) / 1e9,
        "gmacs_analytic": (formula + rest) / 1e9,
        "gmacs_dense": dense_macs / 1e9,
        "macs_share": (macs + rest) / dense_macs,
        **({} if again is None else {"fallback": entry.encoding.fallback, "ran_densely": again}),
    }


def _speeds(entries: Sequence[Entry], dense: Entry, pixels: Tensor) -> dict[Hashable, float]:
    """Images per second of what can be deployed, each keep rate in alternation with the dense model.

    Without a fallback: how many images run densely is another matter for random pixels.
    """
    speeds: dict[Hashable, float] = {}
    for rate in dict.fromkeys(entry.keep for entry in entries):
        others = [entry for entry in entries if entry.keep == rate and entry is not dense]
        timed = [entry for entry in others if not entry.method.oracle and entry.encoding.fallback is None]
        found = images_per_second({entry: entry.encoding for entry in (dense, *timed)}, pixels)
        speeds |= {entry: found[entry] for entry in (timed if rate < 1 else (dense, *timed))}
        speeds[DENSE, rate] = found[dense]
    return speeds


def _accuracy(tally: Tally, key: Hashable, seed: int) -> dict[str, Any]:
    own, dense = tally.values(key, "top1"), tally.values(DENSE, "top1")
    return {
        "top1": tally.mean(key, "top1"),
        "top1_dense": tally.mean(DENSE, "top1", own.keys()) if own else tally.mean(DENSE, "top1"),
        "top1_interval": interval(list(own.values()), seed),
        "top1_change_interval": interval([hit - dense[image] for image, hit in own.items()], seed),
        "top5": tally.mean(key, "top5"),
        "mean_per_class": tally.mean_per_class(key),
        "feature_cosine": tally.mean(key, "feature_cosine"),
        "object_patches_kept": tally.mean(key, "object_patches_kept"),
    }


def dense_neighbours(tally: Tally) -> Tensor | None:
    """What the indexed images find under the dense model, ``(images, 10)`` or fewer; None of a single image."""
    _, index = tally.features(DENSE)
    k = min(_NEIGHBOURS, len(index) - 1)
    return nearest(index, index, k)[0] if k > 0 else None


def index_measures(tally: Tally, key: Hashable, neighbours: Tensor | None) -> dict[str, float | None]:
    """What the indexed images find in an index of the dense model's features, beside ``dense_neighbours``."""
    images, index = tally.features(DENSE)
    own, queries = tally.features(key)
    if own != images or neighbours is None:
        return {"index_overlap_at_10": None, "knn_top1": None}
    found, cosines = nearest(queries, index, neighbours.shape[1])
    hits = None
    if tally.labels is not None:
        labels = torch.tensor([tally.labels[image] for image in images])
        hits = 100 * knn_top1(found, cosines, labels).mean().item()
    return {"index_overlap_at_10": overlap(found, neighbours).mean().item(), "knn_top1": hits}


def recalls(tally: Tally, key: Hashable, captions: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    """Recall of retrieval both ways among the indexed images; empty without captions."""
    own, features = tally.features(key)
    if captions is None or own != tally.features(DENSE)[0]:
        return {}
    rows: dict[str, float] = {}
    for k in _RECALLS:
        rows[f"recall_at_{k}"], rows[f"text_recall_at_{k}"] = recall(features, *captions, k)
    return rows


def caption_features(
    model: LoadedModel, data: ImageData, tally: Tally, prompts: Prompts | None
) -> tuple[Tensor, Tensor] | None:
    """Unit features of the captions of the indexed images, and the number of the image that each belongs to."""
    if data.captions is None or model.text is None:
        return None
    images, _ = tally.features(DENSE)
    texts = [caption for image in images for caption in data.captions[image]]
    owner = [row for row, image in enumerate(images) for _ in data.captions[image]]
    if not texts:
        return None
    context = None if prompts is None else prompts.context
    found = []
    for first in range(0, len(texts), _TEXTS_PER_BATCH):
        batch = texts[first : first + _TEXTS_PER_BATCH]
        found.append(model.text(batch) if context is None else prompted_features(model.text, context, batch))
    return torch.cat(found).float().cpu(), torch.tensor(owner)


def _same_images(tally: Tally, oracle: Entry, entries: Sequence[Entry]) -> dict[str, dict[str, float | None]]:
    """The dense model and the deployable methods at an oracle's keep rate, on the images of the oracle."""
    beside = [e for e in entries if e.key == DENSE or (e.keep == oracle.keep and e.method.tuned == "none")]
    return {
        entry.method.name: {
            measure: tally.mean(entry.key, measure, oracle.encoding.images) for measure in ("top1", "feature_cosine")
        }
        for entry in beside
        if not entry.method.oracle
    }
