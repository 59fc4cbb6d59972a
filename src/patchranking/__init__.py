"""Faster CLIP image encoders: rank patches, predict the ranking, run the model on those that matter.

Models and images
    load_model, LoadedModel      a model by its MODEL argument, with its preprocessing and text encoder
    as_tower, VisionTower        one view of the image encoders of open_clip, transformers and timm
    as_text_tower, TextTower     one view of their text encoders
    load_data, ImageData         images by a DATA argument
    demo                         the embedded model's generated scenes

Pruning
    Pruner                       the artefact: attach it to a model, set its keep rate, save and load it
    Predictor                    the tiny network that scores patches
    Schedule                     where patches are dropped and how many stay

The three phases
    rank, SearchSettings         Phase I: golden rankings of a data set, in resumable shards
    sketched, leave_out, iterative, Ranking
                                 the searches on a batch of pixels
    fit, FitSettings, FitReport  Phase II: a pruner from pictures
    tune, TuneSettings, TuneReport
                                 Phase III: learnable tokens from a few shots

Measuring
    evaluate, EvaluationSettings compare the dense model, pruners, baselines and the oracle

Errors
    UserError, MissingExtraError one sentence that says what is wrong and what to do
"""

# ruff: noqa: F401
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchranking import demo
    from patchranking.data import ImageData, load_data
    from patchranking.errors import MissingExtraError, UserError
    from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
    from patchranking.fitting.fit import FitReport, FitSettings, fit
    from patchranking.predictor.networks import Predictor
    from patchranking.pruner import Pruner
    from patchranking.pruning.schedule import Schedule
    from patchranking.ranking.iterative import iterative
    from patchranking.ranking.job import rank
    from patchranking.ranking.leave_out import leave_out
    from patchranking.ranking.ranking import Ranking
    from patchranking.ranking.search import SearchSettings
    from patchranking.ranking.sketched import sketched
    from patchranking.towers import TextTower, VisionTower, as_text_tower, as_tower
    from patchranking.towers.load import LoadedModel, load_model
    from patchranking.tuning.tune import TuneReport, TuneSettings, tune

    __version__: str

_HOMES = {
    "data": ("ImageData", "load_data"),
    "errors": ("MissingExtraError", "UserError"),
    "evaluation.evaluate": ("EvaluationSettings", "evaluate"),
    "fitting.fit": ("FitReport", "FitSettings", "fit"),
    "predictor.networks": ("Predictor",),
    "pruner": ("Pruner",),
    "pruning.schedule": ("Schedule",),
    "ranking.iterative": ("iterative",),
    "ranking.job": ("rank",),
    "ranking.leave_out": ("leave_out",),
    "ranking.ranking": ("Ranking",),
    "ranking.search": ("SearchSettings",),
    "ranking.sketched": ("sketched",),
    "towers": ("TextTower", "VisionTower", "as_text_tower", "as_tower"),
    "towers.load": ("LoadedModel", "load_model"),
    "tuning.tune": ("TuneReport", "TuneSettings", "tune"),
}
"""Module -> the public names it defines; each is imported when it is first asked for."""

_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", "demo", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("patchranking")
    if name == "demo":
        return importlib.import_module("patchranking.demo")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'patchranking' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"patchranking.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
