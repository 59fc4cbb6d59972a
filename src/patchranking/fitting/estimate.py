"""How long a fit takes on this machine, from a small batch of each of its parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from patchranking.fitting.cache import VIEWS
from patchranking.fitting.fit import FitSettings
from patchranking.predictor.distill import IMAGES_PER_STEP, soft_damage
from patchranking.predictor.networks import Predictor
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.objectives import preservation
from patchranking.ranking.search import SearchSettings
from patchranking.towers import VisionTower

__all__ = ["estimate_minutes"]

_IMAGES = 4


def estimate_minutes(tower: VisionTower, images: int, settings: FitSettings, schedule: Schedule) -> float:
    """Minutes that a fit takes, but for reading pictures and for imitation, which is short.

    Args:
        tower: The image encoder.
        images: Images to fit to.
        settings: How to fit.
        schedule: Where patches are dropped.
    """
    pixels = torch.zeros(_IMAGES, 3, *tower.image_size, dtype=tower.dtype, device=tower.device)
    tower(pixels[:1])
    with torch.no_grad():
        seconds = _seconds(lambda: tower(pixels)) / _IMAGES * images * VIEWS
        features = tower(pixels)
    if settings.imitates:
        search = SearchSettings(settings.search, settings.score, schedule.block)
        once = _seconds(lambda: search.function(tower, pixels, objective=preservation, **search.arguments))
        seconds += once / _IMAGES * min(images, settings.ranked)
    for stage, kept in schedule.kept(tower.num_patches).items() if settings.distills else ():
        predictor = Predictor.for_tower(tower, "mlp").to(tower.device)
        with torch.no_grad():
            tokens = tower.embed(pixels, stage)
        step = partial(_step, predictor, tower, tokens, features, stage, kept)
        seconds += _seconds(step) / _IMAGES * IMAGES_PER_STEP * settings.steps
    return seconds / 60


def _step(predictor: Predictor, tower: VisionTower, tokens: Tensor, features: Tensor, stage: int, kept: int) -> None:
    loss = soft_damage(predictor, tower, tokens, features, stage, min(kept, tower.num_patches - 1), 0.1)
    torch.autograd.grad(loss, list(predictor.parameters()))


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
