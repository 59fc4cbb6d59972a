"""Compares methods on the same images: the dense model, a pruner, baselines and an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from patchranking.checkpoint import claim, digest
from patchranking.data import ImageData
from patchranking.errors import UserError, check_numbers
from patchranking.evaluation.accounting import accounting
from patchranking.evaluation.environment import environment
from patchranking.evaluation.examples import Example, examples, farthest
from patchranking.evaluation.recommend import recommend, spotlight
from patchranking.evaluation.rows import Entry, rows_of
from patchranking.methods import Dense, Method, PatchRanking, named
from patchranking.methods.attach import check_class_token
from patchranking.methods.journal import Journal
from patchranking.methods.measure import measure
from patchranking.methods.method import Fixed
from patchranking.methods.tally import DENSE
from patchranking.predictor.fallback import NEEDS_A_FIT, check_fallback
from patchranking.pruner import Pruner
from patchranking.pruning.macs import keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import check_keep_rate
from patchranking.towers import VisionTower
from patchranking.towers.identity import BaseModel
from patchranking.towers.load import LoadedModel

__all__ = ["EvaluationSettings", "evaluate"]

_USUAL = ("random", "cls-attention", "evit", "tome", "golden")


@dataclass(frozen=True)
class EvaluationSettings:
    """What to compare.

    Attributes:
        methods: Baselines (random, centre-crop, cls-attention, evit, a-vit, tome, pitome, low-res), and golden, the
            oracle; dense and the pruners are always measured. Of the default, a model without a class token is spared
            cls-attention and evit.
        keep: Keep rates, the shares of patches that reach the end; 1.0 is the dense model.
        macs: Shares of the dense multiply-accumulates to compare at, in place of keep rates.
        fallback: Estimated errors, 1 - cosine to the dense feature, above which images run densely, too: more rows of a
            fitted pruner, whose MACs are the mean over the images.
        golden_images: Images, drawn by seed, on which the oracle runs.
        index_images: Images, drawn by seed, whose features are kept for nearest neighbours and retrieval.
        batch_size: Images per batch.
        timing_batch: Images per batch when timing; 0 leaves timing out.
        examples: Images shown in the report, the first that can be read; with the oracle, of those that it runs on.
        worst: Images shown on which the pruned and the dense model disagree most.
        seed: Random seed.
    """

    methods: list[str] = field(default_factory=lambda: [*_USUAL])
    keep: list[float] = field(default_factory=lambda: [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    macs: list[float] = field(default_factory=list)
    fallback: list[float] = field(default_factory=list)
    golden_images: int = 100
    index_images: int = 10_000
    batch_size: int = 32
    timing_batch: int = 16
    examples: int = 8
    worst: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        named(self.methods)
        for rate in self.keep:
            check_keep_rate(rate)
        for error in self.fallback:
            check_fallback(error)
        least = {"batch_size": 1, "golden_images": 0, "index_images": 0, "timing_batch": 0}
        check_numbers(vars(self), **least, examples=0, worst=0, seed=0)


def evaluate(
    model: LoadedModel,
    data: ImageData,
    pruners: Sequence[Pruner] = (),
    settings: EvaluationSettings = EvaluationSettings(),
    schedule: Schedule | None = None,
    progress: Path | None = None,
    files: Sequence[Fixed] = (),
) -> tuple[dict[str, Any], list[Example]]:
    """Measures accuracy, retrieval, agreement with the dense model, cost and speed.

    Args:
        model: The dense model.
        data: The images, labelled for top-1, captioned for retrieval.
        pruners: A pruner fitted to the model, and others tuned from it, at most one of each kind of tokens; none for
            the baselines alone.
        settings: What to compare.
        schedule: Where every method drops patches; that of the first pruner, or all before block 3, when omitted.
        progress: Folder for what is measured; with that of the same evaluation, killed, it goes on.
        files: Methods with a keep rate of their own, such as exported models.

    Returns:
        The content of results.json, and the examples of the report, the worst ones first.

    Raises:
        UserError: If two pruners are of a kind, one is another model's or cannot estimate its errors for a fallback, or
            that comes without a fitted one, a method needs a class token and there is none, tuned tokens do not
            fit the classes, no image can be read, or ``progress`` is that of another evaluation.
    """
    own = _pruners(model, data, pruners)
    reference = schedule or (own[0].pruner.fitted if own else Schedule({3: 0.6}))
    reference.check(model.tower)
    baselines = [*_falling_back(own, settings.fallback), *_baselines(model.tower, settings)]
    order = np.random.default_rng(settings.seed).permutation(len(data)).tolist()
    oracle_images = frozenset(order[: settings.golden_images])
    entries = _entries(model, own, baselines, reference, schedule is not None, settings, oracle_images)
    entries += [Entry(one, one.keep, one.at(model.tower, reference, settings.seed)) for one in files]
    encodings = {entry: entry.encoding for entry in entries if entry.key != DENSE}
    indexed = frozenset(order[: settings.index_images])
    journal = None
    if progress is not None:
        of = {
            "model": asdict(BaseModel.of(model.tower, model.name)),
            "images": digest([*data.keys, *data.class_names, *data.templates, *map(str, data.labels or [])]),
            "pruners": [{"weights": digest(one.state_dict()), "keep": one.fitted.to_dict()} for one in pruners],
            "files": [one.fingerprint for one in files],
            "schedule": reference.to_dict(),
            "settings": asdict(settings),
        }
        names = {entry.key: entry.name for entry in entries}
        journal = Journal(claim(progress, "evaluation", of), names)
    tally = measure(model, data, encodings, None, indexed, settings.batch_size, "evaluate", journal)
    rows = rows_of(model, data, tally, entries, settings.timing_batch, settings.seed)
    found = recommend(rows)
    results = {
        "environment": environment(model.tower.device) | {"dtype": str(model.tower.dtype).removeprefix("torch.")},
        "rows": rows,
        "recommendation": None if found is None else asdict(found),
        **accounting(data, tally.count(DENSE), tally.skipped),
    }
    golden = any(method.oracle for method in baselines)
    readable = [image for image in tally.values(DENSE, "feature_cosine") if not golden or image in oracle_images]
    chosen = spotlight(rows)
    spoken_of = next((entry for entry, row in zip(entries, rows, strict=True) if row is chosen), None)
    worst = farthest(tally, spoken_of, settings.worst) if spoken_of is not None and spoken_of.method.shown else []
    first = [image for image in readable if image not in worst][: settings.examples]
    shown = examples(model, data, worst, entries, tally, True) + examples(model, data, first, entries, tally)
    return results, shown


def _pruners(model: LoadedModel, data: ImageData, pruners: Sequence[Pruner]) -> list[PatchRanking]:
    """The pruners as methods, an untuned one first, with the text features that go with their tokens."""
    for pruner in pruners:
        pruner.base.check(model.tower)
        pruner.to(model.tower.device)
    kinds = [pruner.tuned for pruner in pruners]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"Two pruners hold the same kind of tokens, {', '.join(kinds)}: give one of each.")
    untuned = [pruner for pruner in pruners if pruner.tuned == "none"] or [one.untuned for one in pruners[:1]]
    tuned = [pruner for pruner in pruners if pruner.tuned != "none"]
    return [PatchRanking.of(one, model, data) for one in (*untuned, *tuned)]


def _entries(
    model: LoadedModel,
    pruners: Sequence[PatchRanking],
    baselines: Sequence[Method],
    reference: Schedule,
    given: bool,
    settings: EvaluationSettings,
    oracle_images: frozenset[int],
) -> list[Entry]:
    """The dense model and every method at every keep rate; tuned tokens on the dense model, too.

    On a schedule that is given, every method drops patches there; otherwise where it does best, at the same MACs.
    """
    tower, seed = model.tower, settings.seed
    keep = [keep_at_macs(tower, reference, share) for share in settings.macs] or settings.keep
    rates = sorted({rate for rate in keep if rate < 1}, reverse=True)
    entries = [Entry(Dense(), 1.0, Dense().at(tower, reference, seed))]
    for rate in (1.0, *rates):
        at = reference.at(rate)
        methods = [one for one in pruners if one.tuned != "none" or rate < 1]
        for method in methods if rate == 1 else [*methods, *baselines]:
            encoding = (method.at if given else method.beside)(tower, at, seed)
            entries.append(Entry(method, rate, replace(encoding, images=oracle_images) if method.oracle else encoding))
    return entries


def _falling_back(pruners: Sequence[PatchRanking], fallbacks: Sequence[float]) -> list[PatchRanking]:
    """The untuned pruner with every fallback."""
    if fallbacks and not pruners:
        raise UserError(NEEDS_A_FIT)
    return [PatchRanking(pruners[0].pruner, fallback=error) for error in dict.fromkeys(fallbacks)]


def _baselines(tower: VisionTower, settings: EvaluationSettings) -> list[Method]:
    """The methods asked for; where none was, those of the usual ones that the model can run."""
    methods = named(settings.methods)
    if tuple(settings.methods) == _USUAL and not tower.has_class_token:
        return [method for method in methods if not method.needs_class_token]
    for method in methods:
        check_class_token(method, tower)
    return methods
