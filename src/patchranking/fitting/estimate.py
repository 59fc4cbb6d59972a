"""How long a fit takes on this machine, from a small batch of each of its parts."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from patchranking.fitting.cache import VIEWS
from patchranking.fitting.settings import FitSettings
from patchranking.predictor.distill import IMAGES_PER_STEP, soft_damage
from patchranking.predictor.networks import Predictor
from patchranking.predictor.precision import frozen_pass, precision_for
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
    tower.embed(pixels[:1], tower.depth)
    with torch.no_grad():
        seconds = _seconds(lambda: tower.embed(pixels, tower.depth)) / _IMAGES * images * VIEWS
    if settings.imitates:
        search = SearchSettings(settings.search, settings.score, schedule.block)
        once = _seconds(lambda: search.function(tower, pixels, objective=preservation, **search.arguments))
        seconds += once / _IMAGES * min(images, settings.ranked)
    if settings.distills:
        predictors = {
            block: Predictor.for_tower(tower, "mlp", merges=settings.merge).to(tower.device)
            for block in schedule.stages
        }
        target, precision = settings.preserved(tower), precision_for(tower, settings.precision)
        with torch.no_grad():
            tokens = tower.embed(pixels, schedule.block)
            full = target.dense(tower, tower.run(tokens, schedule.block, target.stop))

        def step() -> None:
            with frozen_pass(tower, precision):
                loss = soft_damage(predictors, tower, tokens, full, schedule, 0.1, target).mean()
            weights = [weight for predictor in predictors.values() for weight in predictor.parameters()]
            torch.autograd.grad(loss, weights, allow_unused=True)

        seconds += _seconds(step) / _IMAGES * IMAGES_PER_STEP * settings.steps
    return seconds / 60


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
