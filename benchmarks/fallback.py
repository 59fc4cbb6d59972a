r"""Images whose error is estimated to be large run densely, too: what that gains at equal mean MACs.

    python benchmarks/fallback.py open_clip:local-dir:photos/photo-clip-s14 \
        photos/flickr8k/test.tsv photos/imagenette/val photos/flowers/val \
        --pruner runs/compare/fits/in/seed-0 runs/compare/fits/in/seed-1 runs/compare/fits/in/seed-2 \
        --shares 0.5 --again 0 0.1 0.2 --out benchmarks/results/fallback-photos.json

The pruners are those that ``compare.py`` fitted. Each runs at some shares of the dense MACs, and then some images run
densely once more: those with the largest estimated errors (fallback), some at random, and, as an oracle, those with the
largest true errors. What one would do instead is to prune all images less, which is measured at the same mean MACs
(pruned). A run that is killed goes on after the last finished pruner and data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DEFAULTS, Results, main
from matched import Point, at_share, dense_point

from patchranking.data import ImageData, load_data, of_half
from patchranking.data.halves import HalfName
from patchranking.errors import UserError
from patchranking.evaluation.bootstrap import paired_interval
from patchranking.evaluation.cost import noise
from patchranking.evaluation.environment import environment
from patchranking.evaluation.retrieval import found
from patchranking.evaluation.rows import caption_features, rest_macs
from patchranking.methods import PatchRanking
from patchranking.methods.attach import fitted_pruner
from patchranking.methods.measure import measure
from patchranking.methods.tally import DENSE, Tally
from patchranking.predictor.doubt import spearman
from patchranking.pruner import Pruner
from patchranking.towers.load import LoadedModel, load_model

PRUNED = "pruned"
"""What all else is compared with: no image runs twice, at the share of the MACs that the others have on average."""
ORACLE = "oracle"

Values = dict[str, list[float]]
"""Measure -> one value an image."""


def fallback(
    model: str,
    data: list[str],
    pruner: list[Path] = [],  # noqa: B006
    out: Path = Path("benchmarks/results/fallback.json"),
    shares: list[float] = [0.6, 0.5, 0.4],  # noqa: B006
    again: list[float] = [0.0, 0.05, 0.1, 0.2, 0.4],  # noqa: B006
    half: HalfName = "test",
    limit: int | None = None,
) -> None:
    """Measures what it gains to run some images densely.

    Args:
        model: The MODEL argument of the command line.
        data: DATA arguments to test on, with classes or captions.
        pruner: Folders of pruners, independent fits of one kind.
        out: The JSON file.
        shares: Shares of the dense MACs of the pruned run.
        again: Shares of the images that run densely once more.
        half: The half of the test images: test for what is reported, dev for choices, or all.
        limit: At most so many images of each data set, both halves together.
    """
    if not pruner:
        raise UserError("Errors are estimated by a fitted pruner: give one, or several fits, with --pruner.")
    for share in again:
        if not 0 <= share <= 1:
            raise UserError(f"--again has shares of the images, from 0 to 1, not {share:g}.")
    if not all(0 < share < 1 for share in shares):
        raise UserError("--shares has shares of the dense MACs, above 0 and below 1.")
    loaded, fits, rows = load_model(model), [fitted_pruner(one) for one in pruner], list[dict[str, Any]]()
    for own in fits:
        own.check_doubt()
        own.base.check(loaded.tower)
        own.to(loaded.tower.device)
    results = Results(out)
    for test in (of_half(load_data(name, limit), half) for name in data):
        dataset = f"{test.name}/{test.split}"
        units = [
            results.once(f"{dataset}, {path}", partial(_measured, loaded, test, own, seed, shares, again))
            for seed, (path, own) in enumerate(zip(pruner, fits, strict=True))
        ]
        rows += [{"dataset": dataset} | row for row in _rows(units)]
    results.write(environment(loaded.tower.device), rows, defaults=DEFAULTS, split=half)


def _measured(
    model: LoadedModel, data: ImageData, pruner: Pruner, seed: int, shares: Sequence[float], again: Sequence[float]
) -> dict[str, Any]:
    """What one pruner gives at every share, for every share of the images and every way to choose them; and dense."""
    method, pixels, tower = PatchRanking(pruner, fallback=inf), noise(model.tower, 1), model.tower
    dense = dense_point(tower, pruner.fitted)

    def point(share: float) -> Point:
        return dense if share > 1 - 1 / tower.num_patches else at_share(method, tower, pruner.fitted, share, dense, 0)

    firsts = {share: point(share) for share in shares}
    rest = rest_macs(firsts[shares[0]].encoding, pixels) / dense.macs
    points = firsts | {
        own.share + part * rest: point(own.share + part * rest) for own in firsts.values() for part in again if part
    }
    encodings = {share: own.encoding for share, own in points.items() if own is not dense}
    tally = measure(model, data, encodings, None, frozenset(range(len(data))), 32, f"{data.name}, fit {seed}")
    score = _Scores(model, data, tally)
    rng, units = np.random.default_rng(seed), list[dict[str, Any]]()
    for share, own in firsts.items():
        estimated, true = score.estimates(share), score.errors(share)
        drawn = rng.permutation(len(true))
        for part in again:
            count = round(part * len(true))
            orders = {"fallback": np.argsort(-estimated, kind="stable"), "random": drawn}
            orders[ORACLE] = np.argsort(-true, kind="stable")
            mean, at = own.share + count / len(true) * rest, own.share + part * rest if part else share
            common = {"macs": share, "again": part, "rank_correlation": score.correlation(share)}
            for kind, order in orders.items():
                chosen = order[:count]
                bound = float(estimated[chosen[-1]]) if kind == "fallback" and count else None
                units.append(
                    common
                    | {"kind": kind, "threshold": bound, "macs_share": mean, "values": score.of(share, chosen.tolist())}
                )
            plain = {"kind": PRUNED, "threshold": None, "macs_share": points[at].share}
            units.append(common | plain | {"values": score.of(DENSE if points[at] is dense else at)})
    return {"dense": score.of(DENSE), "units": units}


class _Scores:
    """Measures of every image, some of which have the dense model's feature."""

    def __init__(self, model: LoadedModel, data: ImageData, tally: Tally) -> None:
        self._tally, self._captions = tally, caption_features(model, data, tally, None)
        self.images, _ = tally.features(DENSE)

    def _values(self, key: Any, measure: str) -> np.ndarray:
        values = self._tally.values(key, measure)
        return np.array([values[image] for image in self.images])

    def estimates(self, key: Any) -> np.ndarray:
        """Estimated 1 - cosine."""
        return self._values(key, "estimated_error")

    def errors(self, key: Any) -> np.ndarray:
        """True 1 - cosine."""
        return 1 - self._values(key, "feature_cosine")

    def correlation(self, key: Any) -> float:
        """Rank correlation of the two."""
        return spearman(torch.from_numpy(self.estimates(key)), torch.from_numpy(self.errors(key)))

    def of(self, key: Any, again: Sequence[int] = ()) -> Values:
        """Measures of all images, where those numbered by ``again`` have the dense feature."""
        chosen = np.array(again, int)
        measures: Values = {}
        for name in ("feature_cosine", "top1"):
            if self._tally.values(key, name):
                values = self._values(key, name)
                values[chosen] = self._values(DENSE, name)[chosen]
                measures[name] = values.round(7).tolist()
        if self._captions is not None:
            features, owner = self._tally.features(key)[1].clone(), self._captions[1]
            features[chosen] = self._tally.features(DENSE)[1][chosen]
            hits = found(features, *self._captions, 1)[0].double()
            per_image = torch.zeros(len(self.images), dtype=torch.float64).scatter_add(0, owner, hits)
            measures["recall_at_1"] = (100 * per_image / owner.bincount(minlength=len(self.images))).tolist()
        return measures


def _rows(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over fits and images, and differences to what is pruned less, with 95 % intervals over images and fits.

    Args:
        measured: Of every fit, what ``_measured`` gave.
    """
    rows, names = [], [(unit["macs"], unit["again"], unit["kind"]) for unit in measured[0]["units"]]
    for macs, again, kind in names:
        fits, rivals = ([fit["units"][names.index((macs, again, one))] for fit in measured] for one in (kind, PRUNED))
        first, thresholds = fits[0], [own["threshold"] for own in fits]
        row: dict[str, Any] = {
            "macs": macs,
            "again": again,
            "kind": kind,
            "oracle": kind == ORACLE,
            "n_images": len(first["values"]["feature_cosine"]),
            "fits": len(fits),
            "macs_share": float(np.mean([own["macs_share"] for own in fits])),
            "macs_share_pruned": float(np.mean([own["macs_share"] for own in rivals])),
            "threshold": None if thresholds[0] is None else float(np.mean(thresholds)),
            "rank_correlation": float(np.mean([own["rank_correlation"] for own in fits])),
        }
        for name in first["values"]:
            own, other = (np.array([unit["values"][name] for unit in units]) for units in (fits, rivals))
            dense = float(np.mean(measured[0]["dense"][name]))
            row[name] = float(own.mean())
            if name == "feature_cosine":
                row["feature_cosine_p1"] = float(np.mean(np.quantile(own, 0.01, axis=1)))
            else:
                row[f"{name}_dense"], row[f"{name}_loss"] = dense, dense - float(own.mean())
            row[f"{name}_gain"] = float(own.mean() - other.mean())
            row[f"{name}_gain_interval"] = _interval(own, other)
        rows.append(row)
    return rows


def _interval(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """Of a difference of the same fits on the same images: images are drawn, and fits in pairs with them."""
    return paired_interval(ours - theirs, np.zeros((1, ours.shape[1])))


if __name__ == "__main__":
    main(fallback)
