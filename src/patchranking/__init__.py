"""Faster CLIP image encoders: rank patches, predict the ranking, run the model on those that matter."""

from patchranking._torchvision import declare_missing_operators

declare_missing_operators()

from patchranking import demo  # noqa: E402
from patchranking.data import load_data  # noqa: E402
from patchranking.errors import MissingExtraError, UserError  # noqa: E402
from patchranking.pruner import Pruner  # noqa: E402
from patchranking.ranking.iterative import iterative  # noqa: E402
from patchranking.ranking.leave_out import leave_out  # noqa: E402
from patchranking.ranking.ranking import Ranking  # noqa: E402
from patchranking.ranking.sketched import sketched  # noqa: E402
from patchranking.towers import TextTower, VisionTower, as_text_tower, as_tower  # noqa: E402
from patchranking.towers.load import LoadedModel, load_model  # noqa: E402

__all__ = [
    "LoadedModel",
    "MissingExtraError",
    "Pruner",
    "Ranking",
    "TextTower",
    "UserError",
    "VisionTower",
    "as_text_tower",
    "as_tower",
    "demo",
    "iterative",
    "leave_out",
    "load_data",
    "load_model",
    "sketched",
]
