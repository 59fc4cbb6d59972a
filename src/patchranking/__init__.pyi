from . import demo
from .data import ImageData, load_data
from .embedding.compare import Comparison, compare_index
from .embedding.embed import embed
from .embedding.embedded import Embedded
from .embedding.job import embed_to
from .embedding.search import Found, search
from .embedding.settings import EmbedSettings
from .embedding.texts import embed_texts
from .errors import MissingExtraError, UserError
from .evaluation.evaluate import EvaluationSettings, evaluate
from .exporting.encoder import Encoder
from .exporting.export import export
from .exporting.settings import ExportSettings
from .fitting.fit import FitReport, fit
from .fitting.settings import FitSettings
from .methods.attach import attach
from .predictor.networks import Predictor
from .pruner import Pruner
from .pruning.attach import detach
from .pruning.schedule import Schedule
from .ranking.iterative import iterative
from .ranking.job import rank
from .ranking.leave_out import leave_out
from .ranking.ranking import Ranking
from .ranking.search import SearchSettings
from .ranking.sketched import sketched
from .towers import TextTower, VisionTower, as_text_tower, as_tower
from .towers.load import LoadedModel, load_model
from .tuning.tune import TuneReport, TuneSettings, tune
from .version import __version__

__all__ = [
    "Comparison",
    "EmbedSettings",
    "Embedded",
    "Encoder",
    "EvaluationSettings",
    "ExportSettings",
    "FitReport",
    "FitSettings",
    "Found",
    "ImageData",
    "LoadedModel",
    "MissingExtraError",
    "Predictor",
    "Pruner",
    "Ranking",
    "Schedule",
    "SearchSettings",
    "TextTower",
    "TuneReport",
    "TuneSettings",
    "UserError",
    "VisionTower",
    "__version__",
    "as_text_tower",
    "as_tower",
    "attach",
    "compare_index",
    "demo",
    "detach",
    "embed",
    "embed_texts",
    "embed_to",
    "evaluate",
    "export",
    "fit",
    "iterative",
    "leave_out",
    "load_data",
    "load_model",
    "rank",
    "search",
    "sketched",
    "tune",
]
