r"""Every way to make CLIP cheaper on a CPU, dense and pruned, from JPEG files to vectors.

    python benchmarks/ladder.py open_clip:local-dir:photos/photo-clip-s14 photos/imagenette/val \
        --pruner runs/compare/fits/in/seed-0 --images photos/imagenette/train \
        --out benchmarks/results/ladder-photos.json

The stock rung is what users have: PyTorch, float32, eager, the library's own preprocessing. Every other rung reads JPEG
files at a part of their size where the model wants no more. Pictures are decoded in as many threads as the model has,
before the model runs. All cells are timed in turn, round after round, and a ratio is taken within a round. ``top1``,
``feature_cosine`` and ``index_overlap_at_10`` are against the stock rung's features of the same pictures. ``memory_mb``
is the peak of a process that loads the cell and runs one batch. A run that is killed goes on.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, main
from memory import UNITS_PER_MIB
from PIL import Image
from rungs import LOW_RES, RUNGS, STOCK, Cell, Rungs, folder_of
from torch import Tensor
from torch.nn import functional as F

from patchranking.data import ImageData, load_data, of_half
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
_ONE = 16
"""Single images in every round."""
Seconds = dict[str, list[float]]


def ladder(
    model: str,
    data: str,
    pruner: Path = Path("runs/fit"),
    images: str | None = None,
    out: Path = Path("benchmarks/results/ladder-photos.json"),
    rungs: list[str] = [*RUNGS],  # noqa: B006
    shares: list[float] = [1.0, 0.6, 0.5, 0.4],  # noqa: B006
    half: HalfName = "test",
    batch: int = 32,
    rounds: int = 5,
    calibration: int = 128,
    limit: int | None = None,
    work: Path = Path("runs/ladder"),
) -> None:
    """Measures the ladder.

    Args:
        model: The model.
        data: Labelled images as files.
        pruner: A pruner that was fitted to the model.
        images: Other images, on which int8 and bf16 are calibrated and measured when they are exported.
        out: The JSON file.
        rungs: Which, besides the stock one.
        shares: Of the dense multiply-accumulates, besides 1, the dense model.
        half: Which half of the images.
        batch: Images per batch.
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
    made = Rungs(loaded, Pruner.from_pretrained(pruner), given, calibration, work)
    pairs = [(name, share) for name in dict.fromkeys([STOCK, *rungs]) for share in sorted({1.0, *shares}, reverse=True)]
    cells = [Cell(name, share) for name, share in pairs if (name, share) != (LOW_RES, 1.0)]
    stock = Cell(STOCK, 1.0)
    read = {cell: _reader(loaded, cell.rung == STOCK) for cell in cells}
    runs = {cell: made.run(cell) for cell in cells}
    reference = _features(runs[stock], read[stock], files)
    macs = {cell: made.macs(cell) for cell in dict.fromkeys([stock, *(cell.counted for cell in cells)])}
    rows = {}
    for cell, run in runs.items():

        def row(cell: Cell = cell, run: Callable[[Tensor], Tensor] = run) -> dict[str, Any]:
            features, share = _features(run, read[cell], files), macs[cell.counted] / macs[stock]
            return _row(made, cell, share, features, reference, found, pruner)

        rows[cell] = results.once(f"{cell.rung} {cell.share:g}", row)
    times = _timed(runs, read, files[:batch], rounds)
    for cell, own in times.items():
        rows[cell] |= _speed(own, times[stock], batch)
    more = {"model": model, "dataset": found.name, "split": half, "n_images": len(found), "batch": batch}
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
    rungs: Rungs, cell: Cell, macs_share: float, features: Tensor, reference: Tensor, data: ImageData, pruner: Path
) -> dict[str, Any]:
    """What a cell keeps of the stock rung, and what it needs."""
    classes = zero_shot_classes(rungs.model, data)
    if classes is None:
        raise UserError(f"{data.name} has no classes, or the model no text encoder: give labelled images and a CLIP.")
    labels, transposed = torch.tensor(data.labels), classes.T
    kept = quality(features, reference)

    def top1(found: Tensor) -> float:
        return 100 * (found @ transposed).argmax(1).eq(labels).float().mean().item()

    return {
        "rung": cell.rung,
        "backend": cell.backend,
        "precision": cell.precision,
        "macs": cell.share,
        "macs_share": macs_share,
        "top1": top1(features),
        "top1_dense": top1(reference),
        "feature_cosine": kept.feature_cosine,
        "index_overlap_at_10": kept.index_overlap_at_10,
        "memory_mb": peak_mib(rungs.model.name, pruner, rungs.work, cell),
        "check": rungs.check(cell),
    }


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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNITS_PER_MIB


@torch.inference_mode()
def _timed(
    runs: Mapping[Cell, Callable[[Tensor], Tensor]],
    read: Mapping[Cell, Callable[[Path], Tensor]],
    files: Sequence[Path],
    rounds: int,
) -> dict[Cell, Seconds]:
    """Seconds of decoding a batch, of the model on it, and of the model on single images, all cells in turn."""
    found: dict[Cell, Seconds] = {cell: {"decode": [], "model": [], "one": []} for cell in runs}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for number in range(rounds + 1):
            for cell, run in runs.items():
                own = {"decode": [], "model": [], "one": []} if number == 0 else found[cell]
                began = time.perf_counter()
                pixels = torch.stack([*pool.map(read[cell], files)])
                decoded = time.perf_counter()
                run(pixels)
                own["decode"].append(decoded - began)
                own["model"].append(time.perf_counter() - decoded)
                for image in pixels[:_ONE]:
                    began = time.perf_counter()
                    run(image[None])
                    own["one"].append(time.perf_counter() - began)
    return found


def _speed(own: Seconds, stock: Seconds, batch: int) -> dict[str, Any]:
    """What the seconds of a cell say beside those of the stock rung."""
    whole, others = (np.array(one["decode"]) + one["model"] for one in (own, stock))
    model_ratio = np.median(np.array(stock["model"]) / own["model"])
    return {
        "batch": batch,
        "images_per_second": batch / float(np.median(whole)),
        "ratio_to_stock": float(np.median(others / whole)),
        "model_ratio_to_stock": float(model_ratio),
        "decode_ms": 1000 * float(np.median(own["decode"])) / batch,
        "model_ms": 1000 * float(np.median(own["model"])) / batch,
        "p50_ms": 1000 * float(np.median(own["one"])),
        "p99_ms": 1000 * float(np.quantile(own["one"], 0.99)),
    }


if __name__ == "__main__":
    main(ladder)
