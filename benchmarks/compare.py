r"""A pruner fitted at home and abroad, every baseline and, if wanted, the oracle, at shares of the dense MACs.

    python benchmarks/compare.py open_clip:local-dir:photos/photo-clip-s14 \
        --fit photos/flickr8k/train.tsv photos/imagenette/train photos/flowers/train \
        --test photos/flickr8k/test.tsv photos/imagenette/val photos/flowers/val \
        --paper_images 300 --trained_fits 1 --timing_batch 8 --picture docs/images/photos.jpg \
        --out benchmarks/results/compare-photos.json

In-domain, a pruner is fitted to the training pictures of all data sets together; out-of-domain, to those of all but the
one it is tested on. Every fit starts anew by its own seed; so does what is fitted of the rivals, but for the leave-out
rankings, which are made once. What is found of every single picture goes into a Parquet file beside the JSON file. A
run that is killed goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import DEFAULTS, main
from differences import differences_of, rows_of
from matched import Point, at_share, dense_point, speeds_of
from pictures import Group, Setting, grouped, table_of
from rivals import PAPER_BLOCKS, Paper, TrainedToMe, leave_out_rankings, paper_pruner, trained_tome, weights_of

from patchranking.checkpoint import claim, digest
from patchranking.data import ImageData, joined, load_data, of_half, shared_pictures, subset
from patchranking.data.base import sample
from patchranking.data.halves import HalfName
from patchranking.errors import UserError, check_numbers
from patchranking.evaluation.environment import environment
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.evaluation.examples import Example
from patchranking.files import as_file_name, make_folder, replacing, write_json
from patchranking.fitting.fit import fit as fit_pruner
from patchranking.fitting.fit import planned
from patchranking.fitting.settings import FitSettings
from patchranking.methods import METHODS, Method, PatchRanking
from patchranking.methods.journal import Journal
from patchranking.methods.measure import measure
from patchranking.methods.tally import DENSE
from patchranking.pruner import Pruner
from patchranking.pruning.macs import keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.report.pictures import examples_picture
from patchranking.towers.identity import BaseModel
from patchranking.towers.load import LoadedModel, load_model

Fits = Sequence[list[PatchRanking | TrainedToMe]]
"""What was fitted by every seed; our pruner comes first."""


def compare(
    model: str,
    settings: FitSettings,
    fit: list[str] = [],  # noqa: B006
    test: list[str] = [],  # noqa: B006
    half: HalfName = "test",
    shares: list[float] = [0.8, 0.7, 0.6, 0.5, 0.4],  # noqa: B006
    fits: int = 3,
    golden_images: int = 0,
    paper_images: int = 0,
    trained_fits: int = 0,
    test_limit: int | None = None,
    timing_batch: int = 0,
    work: Path = Path("runs/compare"),
    out: Path = Path("benchmarks/results/compare.json"),
    picture: Path | None = None,
    examples: int = 4,
) -> None:
    """Compares pruners with the baselines, in-domain and out-of-domain.

    Args:
        model: The MODEL argument of the command line.
        settings: How to fit; seed is that of the first fit.
        fit: DATA arguments of training images, one for each data set.
        test: DATA arguments to test on, in the same order, with classes or captions.
        half: The half of the test images: test for what is reported, dev for choices, or all.
        shares: Shares of the dense MACs.
        fits: Independent fits, and seeds of the random baseline.
        golden_images: Images of each data set for the golden oracle; 0 leaves it out.
        paper_images: Training images that are ranked by leave-out for the paper's own predictor; 0 leaves it out.
        trained_fits: Fits of ToMe with a distilled correction, in-domain; 0 leaves it out.
        test_limit: At most so many images of each data set, both halves together.
        timing_batch: Images per batch when timing; 0 leaves timing out.
        work: Folder for the pruners, and for what is measured until the end.
        out: The JSON file.
        picture: Picture of examples.
        examples: Images of each data set in the picture.
    """
    numbers = {"golden_images": golden_images, "paper_images": paper_images, "trained_fits": trained_fits}
    check_numbers(numbers | {"timing_batch": timing_batch}, **dict.fromkeys([*numbers, "timing_batch"], 0))
    check_numbers({"fits": fits}, fits=1)
    shares = sorted({round(share, 4) for share in shares}, reverse=True)
    loaded, make = load_model(model), make_folder(out.parent)
    about = environment(loaded.tower.device) | {"dtype": str(loaded.tower.dtype).removeprefix("torch.")}
    trains, tests = _data(fit, test, settings.limit, half, test_limit)
    shape = planned(loaded, settings)
    for share in shares:
        keep_at_macs(loaded.tower, shape, share)
    together, rankings = joined(list(trains.values())), None
    if paper_images:
        rankings = leave_out_rankings(loaded, together, paper_images, work / "leave-out")
    plan = _Plan(loaded, settings, shape, fits, rankings)
    home = plan.fitted(together, work / "fits/in", trained_fits)
    baselines = [method for method in METHODS.values() if golden_images or not method.oracle]
    shared = _points(loaded, baselines, shares, fits, {"in": home}, shape)
    tables, costs, shown = list[pa.Table](), dict[Group, dict[str, Any]](), list[Example]()
    for place, (name, data) in enumerate(tests.items()):
        others = [train for number, train in enumerate(trains.values()) if number != place]
        folder = work / f"fits/without-{as_file_name(list(trains)[place])}"
        away = {"out": plan.fitted(joined(others), folder)} if others else {}
        points = shared | _points(loaded, [], shares, fits, away, shape)
        costs |= {Group(name, s.method, s.domain, s.macs): point.cost for s, point in points.items()}
        measured = work / "measured" / as_file_name(name)
        tables.append(_measured(loaded, data, name, points, {"in": home, **away}, golden_images, measured))
        if picture:
            ours = next(method for method in home[0] if isinstance(method, PatchRanking))
            shown += _examples(loaded, data, ours.pruner, [method.name for method in baselines], examples)
    table = pa.concat_tables(tables).unify_dictionaries()
    with replacing(make / out.with_suffix(".parquet").name) as partial:
        pq.write_table(table, partial, compression="zstd")
    if picture:
        examples_picture(shown).save(picture, optimize=True)
    groups = grouped(table)
    results = {
        "environment": about,
        "model": model,
        "split": half,
        "defaults": DEFAULTS,
        "fit": asdict(settings) | {"fits": fits, "data": list(trains)},
        "rows": rows_of(groups, costs),
        "differences": differences_of(groups),
        "speed": speeds_of(loaded.tower, shared, timing_batch) if timing_batch else [],
    }
    write_json(out, results)
    shutil.rmtree(work / "measured")
    print(f"wrote {out} and {out.with_suffix('.parquet').name}")


def _data(
    fit: list[str], test: list[str], limit: int, half: HalfName, test_limit: int | None
) -> tuple[dict[str, ImageData], dict[str, ImageData]]:
    """Training and test images by name, in pairs; no picture is in both."""
    if not fit or len(fit) != len(test):
        raise UserError(
            f"Every data set has training images and test images: give as many --fit as --test, not {len(fit)} and "
            f"{len(test)}."
        )
    trains = {f"{data.name}/{data.split}": data for data in (load_data(one, limit, 0, "train") for one in fit)}
    tests = {f"{data.name}/{data.split}": data for data in (load_data(one, test_limit) for one in test)}
    if len(trains) < len(fit) or len(tests) < len(test):
        raise UserError("Two data sets have the same name and split: give each one once.")
    for name, data in tests.items():
        for train, pictures in trains.items():
            if seen := shared_pictures(pictures, data):
                raise UserError(
                    f"{len(seen)} test images of {name} are in {train}, too, such as '{seen[0]}': take others."
                )
    return trains, {name: of_half(data, half) for name, data in tests.items()}


@dataclass(frozen=True)
class _Plan:
    """What is fitted, and how.

    Attributes:
        model: The model.
        settings: How pruners are fitted; seed is that of the first fit.
        shape: Their schedule.
        fits: Number of independent fits.
        rankings: Leave-out rankings for the paper's predictor; None leaves it out.
    """

    model: LoadedModel
    settings: FitSettings
    shape: Schedule
    fits: int
    rankings: Path | None

    def fitted(self, data: ImageData, folder: Path, trained: int = 0) -> Fits:
        """Independent fits to a data set, and so many of ToMe with a correction; finished ones are read again."""
        return [self._fitted(data, folder, number, number < trained) for number in range(self.fits)]

    def _fitted(self, data: ImageData, folder: Path, number: int, trained: bool) -> list[PatchRanking | TrainedToMe]:
        seed = self.settings.seed + number
        own, settings = folder / f"seed-{seed}", replace(self.settings, seed=seed)
        base = asdict(BaseModel.of(self.model.tower, self.model.name))
        of = {"model": base, "images": digest(data.keys), "settings": asdict(settings)}
        claim(own, "fit", of)
        if not (own / "fit.json").is_file():
            fit_pruner(self.model, data, own, settings)
            print(f"fitted {own}", flush=True)
        methods: list[PatchRanking | TrainedToMe] = [
            PatchRanking(Pruner.from_pretrained(own).to(self.model.tower.device))
        ]
        if self.rankings:
            rival = claim(folder / f"paper-seed-{seed}", "fit", of)
            pruner = paper_pruner(self.model, data, settings, self.rankings, rival)
            methods += [Paper(pruner, kind) for kind in PAPER_BLOCKS]
        if trained:
            rival = claim(folder / f"tome-seed-{seed}", "fit", of)
            methods.append(trained_tome(self.model, data, settings, self.shape, rival))
        return methods


def _points(
    model: LoadedModel,
    baselines: Sequence[Method],
    shares: list[float],
    fits: int,
    fitted: Mapping[str, Fits],
    shape: Schedule,
) -> dict[Setting, Point]:
    """The dense model, baselines and what was fitted at every share of the dense MACs, by domain."""
    tower, dense = model.tower, dense_point(model.tower, shape)
    points = {Setting(DENSE, None, 0, 1.0): dense}
    for share in shares:
        for domain, own in fitted.items():
            for seed, methods in enumerate(own):
                for fit in methods:
                    setting = Setting(fit.name, domain, seed, share)
                    points[setting] = at_share(fit, tower, shape, share, dense, seed)
        for method in baselines:
            for seed in range(fits if method.name == "random" else 1):
                points[Setting(method.name, None, seed, share)] = at_share(method, tower, shape, share, dense, seed)
    return points


def _measured(
    model: LoadedModel,
    data: ImageData,
    name: str,
    points: Mapping[Setting, Point],
    fitted: Mapping[str, Fits],
    golden_images: int,
    folder: Path,
) -> pa.Table:
    """What is found of every picture of a data set, read once for all encodings."""
    oracle_images = frozenset(sample(len(data), golden_images, 0))
    encodings = {
        setting: replace(point.encoding, images=oracle_images) if point.oracle else point.encoding
        for setting, point in points.items()
        if setting.method != DENSE
    }
    of = {
        "model": asdict(BaseModel.of(model.tower, model.name)),
        "images": digest([*data.keys, *data.class_names, *data.templates, *map(str, data.labels or [])]),
        "fitted": [digest(weights) for own in fitted.values() for fit in own for weights in weights_of(fit)],
        "schedules": {setting.name: encoding.schedule.to_dict() for setting, encoding in encodings.items()},
        "golden_images": golden_images,
    }
    names: dict[Hashable, str] = {DENSE: DENSE, **{setting: setting.name for setting in encodings}}
    journal = Journal(claim(folder, "comparison", of), names)
    tally = measure(model, data, encodings, None, frozenset(range(len(data))), 32, name, journal)
    return table_of(model, data, name, tally, {DENSE: Setting(DENSE, None, 0, 1.0)} | {s: s for s in encodings})


def _examples(model: LoadedModel, data: ImageData, pruner: Pruner, methods: list[str], number: int) -> list[Example]:
    """A few images, drawn by seed, with what the methods keep of them."""
    settings = EvaluationSettings(methods, [0.6, 0.5], golden_images=number, timing_batch=0, examples=number, worst=0)
    return evaluate(model, subset(data, number, 0), [pruner], settings)[1]


if __name__ == "__main__":
    main(compare)
