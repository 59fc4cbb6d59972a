r"""Every way to make CLIP cheaper on a CPU, dense and pruned, from JPEG files to vectors.

    python benchmarks/ladder.py open_clip:local-dir:photos/photo-clip-s14 photos/imagenette/val \
        --pruner runs/compare/fits/in/seed-0 --images photos/imagenette/train \
        --rungs "pytorch bf16" "compile bf16" "onnx fp32" "onnx int8" "openvino fp32" "openvino bf16" \
        "openvino int8" "low-res fp32" \
        --out benchmarks/results/ladder-photos.json

The stock rung is what users have: PyTorch, float32, eager, the library's own preprocessing. Every other rung reads JPEG
files at a part of their size where the model wants no more. Pictures are decoded in as many threads as the model has,
before the model runs. All cells are timed in turn, round after round, and a ratio is taken within a round.
``ratio_to_dense`` is of the model alone, beside the same rung without a pruner, by batch size. ``top1``,
``feature_cosine`` and ``index_overlap_at_10`` are against the stock rung's features of the same pictures; a model with
random weights has times and cosines alone. ``memory_mb`` is the peak of a process that loads the cell and runs one
batch. A run that is killed goes on.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, main
from PIL import Image
from rungs import LOW_RES, RUNGS, STOCK, Cell, Rungs, folder_of
from torch import Tensor
from torch.nn import functional as F

from patchranking.data import load_data, of_half
from patchranking.data.halves import HalfName
from patchranking.data.images import read_sized
from patchranking.errors import UserError
from patchranking.evaluation.environment import environment
from patchranking.exporting.encoder import Encoder
from patchranking.exporting.quality import processor, quality
from patchranking.methods.measure import zero_shot_classes
from patchranking.pruner import Pruner
from patchranking.towers.load import LoadedModel, load_model

_DRAFT = 2
_PEAK_BATCH = 8
_ONES = 16
"""Single images in every round."""
Seconds = dict[str, list[float]]
"""Of every round: decoding, and the model on a batch by its size as text."""


def ladder(
    model: str,
    data: str,
    pruner: Path = Path("runs/fit"),
    images: str | None = None,
    out: Path = Path("benchmarks/results/ladder-photos.json"),
    rungs: list[str] = [*RUNGS],  # noqa: B006
    shares: list[float] = [1.0, 0.6, 0.5, 0.4],  # noqa: B006
    twin: str | None = None,
    half: HalfName = "test",
    batches: list[int] = [1, 8, 32],  # noqa: B006
    rounds: int = 5,
    calibration: int = 128,
    limit: int | None = None,
    work: Path = Path("runs/ladder"),
) -> None:
    """Measures the ladder.

    Args:
        model: The model.
        data: Images as files; top-1 is measured where they have classes.
        pruner: A pruner that was fitted to the model.
        images: Other images, on which int8 and bf16 are calibrated and measured when they are exported.
        out: The JSON file.
        rungs: Which, besides the stock one.
        shares: Of the dense multiply-accumulates, besides 1, the dense model.
        twin: Another model that is timed dense, such as one with larger patches.
        half: Which half of the images.
        batches: Images per batch; the largest is timed from the files on.
        rounds: How often every cell is timed.
        calibration: As in export.
        limit: At most so many images, both halves together.
        work: Folder for the exported models.
    """
    if unknown := [name for name in rungs if name not in RUNGS]:
        raise UserError(f"Unknown rung '{unknown[0]}': choose from {', '.join(RUNGS)}.")
    results, loaded = Results(out), load_model(model)
    found = of_half(load_data(data, limit), half)
    given = None if images is None else load_data(images)
    files = [Path(data) / key for key in found.keys]
    fitted = Pruner.from_pretrained(pruner)
    made = Rungs(loaded, fitted, given, calibration, work)
    other = None if twin is None else Rungs(load_model(twin), fitted, given, calibration, work)
    names, stock = dict.fromkeys([STOCK, *rungs]), Cell(STOCK, 1.0)
    pairs = [(name, share) for name in names for share in sorted({1.0, *shares}, reverse=True)]
    cells = {Cell(name, share): made for name, share in pairs if (name, share) != (LOW_RES, 1.0)}
    if other is not None:
        cells |= {Cell(name, 1.0, twin=True): other for name in names if name != LOW_RES}
    read = {cell: _reader(of.model, cell.rung == STOCK) for cell, of in cells.items()}
    runs = {cell: of.run(cell) for cell, of in cells.items()}
    reference = _features(runs[stock], read[stock], files)
    macs = {cell: of.macs(cell) for cell, of in {cell.counted: of for cell, of in cells.items()}.items()}
    models = {cell.twin: of.model for cell, of in cells.items()}
    classes = {twin: zero_shot_classes(one, found) for twin, one in models.items()}
    rows = {}
    for cell, of in cells.items():

        def row(cell: Cell = cell, of: Rungs = of) -> dict[str, Any]:
            found_here = _features(runs[cell], read[cell], files)
            top1 = partial(_top1, classes[cell.twin], found.labels)
            return _row(of, cell, macs[cell.counted] / macs[stock], found_here, reference, top1, pruner)

        rows[cell] = results.once(cell.name, row)
    times = _timed(runs, read, files[: max(batches)], batches, rounds)
    for cell, own in times.items():
        dense = times.get(replace(cell, share=1.0), times[stock])
        rows[cell] |= _speed(own, times[stock], dense, batches)
    more = {"model": model, "dataset": found.name, "split": half, "n_images": len(found), "batches": batches}
    results.write(environment(torch.device("cpu")), [*rows.values()], processor=processor(), rounds=rounds, **more)


def _reader(model: LoadedModel, stock: bool) -> Callable[[Path], Tensor]:
    """Maps a file to pixels, as users do it or with large JPEG files read at a part of their size."""
    if stock:
        return lambda path: model.preprocess(Image.open(path).convert("RGB"))
    return lambda path: model.preprocess(read_sized(path, _DRAFT * max(model.tower.image_size))[0])


@torch.inference_mode()
def _features(run: Callable[[Tensor], Tensor], read: Callable[[Path], Tensor], files: Sequence[Path]) -> Tensor:
    """Unit features of all images."""
    found = []
    for start in range(0, len(files), 32):
        found.append(run(torch.stack([read(path) for path in files[start : start + 32]])))
    return F.normalize(torch.cat(found), dim=-1)


def _row(
    rungs: Rungs,
    cell: Cell,
    macs_share: float,
    features: Tensor,
    reference: Tensor,
    top1: Callable[[Tensor], float | None],
    pruner: Path,
) -> dict[str, Any]:
    """What a cell keeps of the stock rung, and what it needs."""
    kept = None if cell.twin else quality(features, reference)
    return {
        "rung": cell.rung,
        "model": rungs.model.name,
        "twin": cell.twin,
        "backend": cell.backend,
        "precision": cell.precision,
        "macs": cell.share,
        "macs_share": macs_share,
        "top1": top1(features),
        "top1_dense": None if cell.twin else top1(reference),
        "feature_cosine": kept and kept.feature_cosine,
        "index_overlap_at_10": kept and kept.index_overlap_at_10,
        "memory_mb": peak_mib(rungs.model.name, pruner, rungs.work, cell),
        "check": rungs.check(cell),
    }


def _top1(classes: Tensor | None, labels: Sequence[int] | None, features: Tensor) -> float | None:
    """Zero-shot accuracy in percent, None where there are no classes."""
    if classes is None:
        return None
    return 100 * (features @ classes.T).argmax(1).eq(torch.tensor(labels)).float().mean().item()


def peak_mib(model: str, pruner: Path, work: Path, cell: Cell) -> float:
    """Peak memory of a process that loads a cell and runs a batch."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (model, pruner, work, cell))


def _peak(model: str, pruner: Path, work: Path, cell: Cell) -> float:
    if cell.exported:
        encoder = Encoder.from_pretrained(folder_of(work, cell))
        height, width = encoder.preprocessing.size
        encoder.run(np.zeros((_PEAK_BATCH, 3, height, width), np.float32))
    else:
        loaded = load_model(model)
        run = Rungs(loaded, Pruner.from_pretrained(pruner), None, 0, work).run(cell)
        with torch.inference_mode():
            run(torch.zeros(_PEAK_BATCH, 3, *loaded.tower.image_size))
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss knows the parent's
    return int(peak) / 1024


@torch.inference_mode()
def _timed(
    runs: Mapping[Cell, Callable[[Tensor], Tensor]],
    read: Mapping[Cell, Callable[[Path], Tensor]],
    files: Sequence[Path],
    batches: Sequence[int],
    rounds: int,
) -> dict[Cell, Seconds]:
    """Seconds of decoding the files, and of the model on batches of every size, all cells in turn."""
    found: dict[Cell, Seconds] = {cell: {"decode": [], **{str(size): [] for size in batches}} for cell in runs}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for number in range(rounds + 1):
            for cell, run in runs.items():
                began = time.perf_counter()
                pixels = torch.stack([*pool.map(read[cell], files)])
                own = {"decode": [time.perf_counter() - began]}
                for size in sorted(batches, reverse=True):
                    own[str(size)] = []
                    for start in range(_ONES if size == 1 else 1):
                        began = time.perf_counter()
                        run(pixels[start % len(pixels) :][:size])
                        own[str(size)].append(time.perf_counter() - began)
                for name, seconds in own.items() if number else ():
                    found[cell][name] += seconds
    return found


def _speed(own: Seconds, stock: Seconds, dense: Seconds, batches: Sequence[int]) -> dict[str, Any]:
    """What the seconds of a cell say beside those of the stock rung, and of the same rung without a pruner."""
    batch = str(max(batches))
    whole, others = (np.array(one["decode"]) + one[batch] for one in (own, stock))
    found = {
        "batch": max(batches),
        "images_per_second": max(batches) / float(np.median(whole)),
        "ratio_to_stock": float(np.median(others / whole)),
        "model_ratio_to_stock": _ratio(stock[batch], own[batch]),
        "ratio_to_dense": {str(size): _ratio(dense[str(size)], own[str(size)]) for size in batches},
        "decode_ms": 1000 * float(np.median(own["decode"])) / max(batches),
        "model_ms": 1000 * float(np.median(own[batch])) / max(batches),
    }
    if 1 in batches:
        found |= {f"p{name}_ms": 1000 * float(np.quantile(own["1"], name / 100)) for name in (50, 99)}
    return found


def _ratio(others: Sequence[float], own: Sequence[float]) -> float:
    """How many times as long something else took, the median over rounds."""
    return float(np.median(np.array(others) / own))


if __name__ == "__main__":
    main(ladder)
