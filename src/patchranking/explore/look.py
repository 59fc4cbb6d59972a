"""Looks at single pictures: what a method keeps of one, what that costs, and what the model then says."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from patchranking.data import ImageData
from patchranking.data.images import UnreadableImageError
from patchranking.data.reading import preprocessed
from patchranking.evaluation.cost import count_macs, time_in_turn
from patchranking.evaluation.rows import Entry, encoding_macs
from patchranking.explore.opening import unusable
from patchranking.explore.says import Said, said, similarity
from patchranking.explore.trace import Stage, first_ranking, traced
from patchranking.methods import METHODS, Method, PatchRanking
from patchranking.methods.batch import Batch
from patchranking.methods.low_res import small_grid
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs, keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers.load import LoadedModel
from patchranking.towers.zero_shot import class_features

__all__ = ["Explorer", "Look", "Seen"]

_BASELINES = ("cls-attention", "evit", "tome", "low-res")
_ROUNDS = 5


@dataclass(frozen=True)
class Seen:
    """One picture under one method.

    Attributes:
        picture: RGB, as the model sees it.
        method: Name of the method.
        share: MACs as counted, as a share of the dense model's.
        importance: Importance of the patches in the first stage, ``(rows, cols)``, higher = keep; None where nothing is
            ranked.
        stages: What every stage lets through; none where the picture itself is made smaller.
        grid: Rows and columns of the patches of the picture.
        run: Rows and columns of the patches that the method begins with, fewer than ``grid`` at a lower resolution.
        patch: Side of a patch in pixels.
        dense: Feature of the dense model, ``(features,)``.
        pruned: Feature with the method, ``(features,)``.
        milliseconds: What the dense model and the method take for this picture alone, medians.
    """

    picture: Image.Image
    method: str
    share: float
    importance: np.ndarray | None
    stages: list[Stage]
    grid: tuple[int, int]
    run: tuple[int, int]
    patch: int
    dense: Tensor
    pruned: Tensor
    milliseconds: tuple[float, float]

    @property
    def cosine(self) -> float:
        """Cosine of the two features."""
        return similarity(self.pruned, self.dense)


@dataclass(frozen=True)
class Look:
    """What there is to show of a picture.

    Attributes:
        seen: The picture under a method.
        said: The likeliest classes; None without a text encoder or classes.
        caption: Cosine of the caption to the dense and to the pruned feature; None without one.
    """

    seen: Seen
    said: Said | None = None
    caption: tuple[float, float] | None = None


class Explorer:
    """A model, dense and pruned, to look at pictures with.

    Args:
        model: The model.
        data: Images whose classes and prompt templates are the ones to begin with.
        pruner: Fitted to the model; tuned tokens are left out. Without one, there are methods that need no fit.

    Attributes:
        methods: Name -> method, the ones that this model can run.
        least: Smallest share of the dense MACs that can be asked for.

    Raises:
        UserError: If the pruner is another model's.
    """

    def __init__(self, model: LoadedModel, data: ImageData, pruner: Pruner | None = None) -> None:
        tower = model.tower
        self.model, self.data = model, data
        self.methods: dict[str, Method] = {
            name: METHODS[name] for name in _BASELINES if tower.has_class_token or not METHODS[name].needs_class_token
        }
        self._reference = Schedule.default(tower.depth, 0.5)
        if pruner is not None:
            pruner.base.check(tower)
            own = PatchRanking(pruner.untuned.to(tower.device))
            self.methods = {own.name: own} | self.methods
            self._reference = pruner.fitted
        fewest = self._reference.at(1 / tower.num_patches)
        macs = (analytic_macs(tower, tower.feature_size, one) for one in (fewest, self._reference.at(1.0)))
        self.least = math.ceil(20 * next(macs) / next(macs)) / 20
        self._entry = lru_cache(maxsize=None)(self._new_entry)
        self._share = lru_cache(maxsize=None)(self._counted_share)
        self._classes = lru_cache(maxsize=16)(self._class_features)
        self._last: tuple[tuple[str, str, float], Seen] | None = None

    def entry(self, method: str, share: float) -> Entry:
        """A method where it has a share of the dense MACs, and where it does best at these.

        Raises:
            UserError: If it does not work with this model, or the share is none.
        """
        return self._entry(method, share)

    def look(self, picture: Image.Image, names: Sequence[str], caption: str, method: str, share: float) -> Look:
        """What there is to show of a picture.

        Args:
            picture: RGB.
            names: Names of classes; those of the images when empty.
            caption: A text to compare the picture with; empty for none.
            method: One of ``methods``.
            share: Of the dense MACs, between ``least`` and 1.

        Raises:
            UserError: If the picture cannot be used, or the method does not work with this model.
        """
        seen, text = self.see(picture, method, share), self.model.text
        if text is None:
            return Look(seen)
        names = tuple(names) or tuple(self.data.class_names)
        answer = None
        if names:
            answer = said(seen.dense, seen.pruned, self._classes(names), names, self.model.logit_scale)
        if not caption.strip():
            return Look(seen, answer)
        with torch.no_grad():
            (feature,) = text([caption.strip()])
        return Look(seen, answer, (similarity(seen.dense, feature), similarity(seen.pruned, feature)))

    def see(self, picture: Image.Image, method: str, share: float) -> Seen:
        """One picture under one method; arguments and errors as in ``look``.

        Asked again for the same, it gives the same, measured times too.
        """
        tower = self.model.tower
        try:
            pixels = preprocessed(self.model.preprocess, picture)[None].to(tower.device, tower.dtype)
        except UnreadableImageError as error:
            raise unusable(error) from error
        key = (hashlib.sha256(pixels.float().cpu().numpy().tobytes()).hexdigest(), method, share)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._seen(pixels, method, share))
        return self._last[1]

    def _seen(self, pixels: Tensor, method: str, share: float) -> Seen:
        tower, entry = self.model.tower, self.entry(method, share)
        counted = self._share(method, share)
        with torch.inference_mode():
            batch = Batch(tower, pixels)
            pruned, dense = entry.encoding.run(batch).features[0].clone(), batch.features[0].clone()
            stages, ranking = traced(entry, batch), first_ranking(entry, batch)
        times = time_in_turn({"dense": tower, "pruned": entry.encoding}, pixels, _ROUNDS)
        first = entry.encoding.schedule.kept(tower.num_patches).get(0, tower.num_patches)
        return Seen(
            self.model.picture(pixels[0]),
            method,
            counted,
            None if ranking is None else ranking[0].view(tower.grid).float().cpu().numpy(),
            stages,
            tower.grid,
            tower.grid if stages else small_grid(tower.grid, first),
            tower.image_size[0] // tower.grid[0],
            dense,
            pruned,
            (1000 * float(np.median(times["dense"])), 1000 * float(np.median(times["pruned"]))),
        )

    def _new_entry(self, method: str, share: float) -> Entry:
        tower, own = self.model.tower, self.methods[method]
        keep = keep_at_macs(tower, self._reference, share)
        return Entry(own, keep, own.beside(tower, self._reference.at(keep), 0))

    def _counted_share(self, method: str, share: float) -> float:
        tower = self.model.tower
        pixels = torch.zeros(1, 3, *tower.image_size, dtype=tower.dtype, device=tower.device)
        return encoding_macs(self.entry(method, share).encoding, pixels) / count_macs(tower, pixels)

    def _class_features(self, names: tuple[str, ...]) -> Tensor:
        assert self.model.text is not None
        return F.normalize(class_features(self.model.text, names, self.data.templates), dim=-1)
