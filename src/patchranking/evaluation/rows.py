"""The rows of results.json: accuracy, agreement with the dense model, cost and speed of every method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchranking.evaluation.bootstrap import interval
from patchranking.evaluation.cost import count_macs, images_per_second
from patchranking.evaluation.neighbours import knn_top1, nearest, overlap
from patchranking.evaluation.retrieval import recall
from patchranking.evaluation.run import ORACLES, TUNED, Run, encoder, macs_by_formula, schedule_of
from patchranking.prompts.insert import prompted_features

__all__ = ["rows_of"]

_DENSE = ("dense", 1.0)
_NEIGHBOURS = 10
_RECALLS = (1, 5, 10)
_TEXTS_PER_BATCH = 256


@torch.inference_mode()
def rows_of(run: Run) -> list[dict[str, Any]]:
    """One row for the dense model and one for every method and keep rate, each with and without tuned tokens.

    Accuracies and recalls are percentages. ``top1_interval`` is a bootstrap interval of 95 %, ``top1_change_interval``
    that of the difference to the dense model on the same images. ``recall_at_k`` finds the picture of a caption,
    ``text_recall_at_k`` a caption of a picture. For ``index_overlap_at_10`` and ``knn_top1`` the method's features
    query an index of the dense model's.
    """
    tower, settings = run.model.tower, run.settings
    sample = torch.zeros(max(1, settings.timing_batch), 3, *tower.image_size, dtype=tower.dtype, device=tower.device)
    sample.normal_(generator=torch.Generator(tower.device).manual_seed(settings.seed))
    features = tower(sample[:1]).shape[-1]
    dense_macs = count_macs(tower, sample[:1])
    captions = {kind: _captions(run, kind) for kind in ("none", *run.tuned)}
    rows = []
    for rate in [1.0, *run.rates]:
        methods = ["dense"] if rate == 1 else [*run.reductions, *run.encoders, *(ORACLES if run.golden else ())]
        methods += [f"{'dense' if rate == 1 else 'patchranking'}{TUNED}{kind}" for kind in run.tuned]
        encoders = {name: encoder(run, name, rate) for name in methods}
        timed = {"dense": tower} | {name: encode for name, encode in encoders.items() if name not in ORACLES}
        speed = images_per_second(timed, sample) if settings.timing_batch else {}
        for name in methods:
            method, _, kind = name.partition(TUNED)
            rows.append(
                {
                    "model": run.model.name,
                    "dataset": run.data.name,
                    "split": run.data.split,
                    "n_images": run.tally.count((name, rate)),
                    "seed": settings.seed,
                    "method": method,
                    "keep_rate": rate,
                    "kept_patches": list(schedule_of(run, name, rate).kept(tower.num_patches).values())[-1],
                    "schedule": None if name == "dense" else schedule_of(run, name, rate).to_dict(),
                    "tuned": kind or "none",
                    "oracle": name in ORACLES,
                    **_accuracy(run, (name, rate)),
                    **_neighbours(run, (name, rate)),
                    **_recalls(run, (name, rate), captions[kind or "none"]),
                    "gmacs": count_macs(encoders[name], sample[:1]) / 1e9,
                    "gmacs_analytic": macs_by_formula(run, name, rate, features) / 1e9,
                    "gmacs_dense": dense_macs / 1e9,
                    "images_per_second": speed.get(name),
                    "images_per_second_dense": speed.get("dense"),
                    **({"same_images": _same_images(run, rate)} if name in ORACLES else {}),
                }
            )
    return rows


def _accuracy(run: Run, key: tuple[str, float]) -> dict[str, Any]:
    tally, seed = run.tally, run.settings.seed
    own, dense = tally.values(key, "top1"), tally.values(_DENSE, "top1")
    return {
        "top1": tally.mean(key, "top1"),
        "top1_dense": tally.mean(_DENSE, "top1"),
        "top1_interval": interval(list(own.values()), seed),
        "top1_change_interval": interval([hit - dense[image] for image, hit in own.items()], seed),
        "top5": tally.mean(key, "top5"),
        "mean_per_class": None if run.data.labels is None else tally.mean_per_class(key, run.data.labels),
        "feature_cosine": tally.mean(key, "feature_cosine"),
        "object_patches_kept": tally.mean(key, "object_patches_kept"),
    }


def _neighbours(run: Run, key: tuple[str, float]) -> dict[str, float | None]:
    images, index = run.tally.features(_DENSE)
    own, queries = run.tally.features(key)
    k = min(_NEIGHBOURS, len(images) - 1)
    if own != images or k < 1:
        return {"index_overlap_at_10": None, "knn_top1": None}
    found, cosines = nearest(queries, index, k)
    hits = None
    if run.data.labels is not None:
        labels = torch.tensor([run.data.labels[image] for image in images])
        hits = 100 * knn_top1(found, cosines, labels).mean().item()
    return {"index_overlap_at_10": overlap(found, nearest(index, index, k)[0]).mean().item(), "knn_top1": hits}


def _recalls(run: Run, key: tuple[str, float], captions: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    own, features = run.tally.features(key)
    if captions is None or own != run.tally.features(_DENSE)[0]:
        return {}
    rows: dict[str, float] = {}
    for k in _RECALLS:
        rows[f"recall_at_{k}"], rows[f"text_recall_at_{k}"] = recall(features, *captions, k)
    return rows


def _captions(run: Run, kind: str) -> tuple[Tensor, Tensor] | None:
    """Unit features of the captions of the indexed images, under tuned tokens or none, and whose each caption is."""
    if run.data.captions is None or run.model.text is None:
        return None
    images, _ = run.tally.features(_DENSE)
    texts = [caption for image in images for caption in run.data.captions[image]]
    owner = [row for row, image in enumerate(images) for _ in run.data.captions[image]]
    prompts = run.tuned[kind].prompts if kind in run.tuned else None
    context, text = None if prompts is None else prompts.context, run.model.text
    found = []
    for first in range(0, len(texts), _TEXTS_PER_BATCH):
        batch = texts[first : first + _TEXTS_PER_BATCH]
        found.append(text(batch) if context is None else prompted_features(text, context, batch))
    return torch.cat(found).float().cpu(), torch.tensor(owner)


def _same_images(run: Run, rate: float) -> dict[str, dict[str, float | None]]:
    keys = [_DENSE, *((name, rate) for name in (*run.reductions, *run.encoders))]
    return {
        key[0]: {measure: run.tally.mean(key, measure, run.golden) for measure in ("top1", "feature_cosine")}
        for key in keys
    }
