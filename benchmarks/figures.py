"""Figures of docs/which-tokens.md: what patches are worth, which of them go at which stage, and where the work is.

    make demo
    python benchmarks/figures.py demo demo:test runs/demo/pruner --out benchmarks/results/figures-demo.json

Pictures are written to ``--images``; charts are drawn from the JSON file, by ``charts``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, main
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from patchranking.data import ImageData, load_data
from patchranking.evaluation.environment import environment
from patchranking.methods import METHODS
from patchranking.methods.batch import Batch
from patchranking.methods.golden import golden_importance
from patchranking.methods.tome import ToMe
from patchranking.pruner import Pruner
from patchranking.pruning.attach import run_reduced
from patchranking.pruning.inside import run_inside
from patchranking.pruning.macs import analytic_macs, nearest_in_macs
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import kept_count
from patchranking.report.pictures import heat_map, kept_view, photo, sheet
from patchranking.report.styles import style
from patchranking.seeding import seeded
from patchranking.towers import VisionTower
from patchranking.towers.load import LoadedModel, load_model

BLOCK = 3
"""Patches go before this block, in one go, where orders are compared."""
KEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
SIDE = 144
GREY = "#646b7a"
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "patchranking",
    "font.size": 10,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": "#9aa1ae",
}


def figures(
    model: str,
    data: str,
    pruner: Path,
    out: Path = Path("benchmarks/results/figures-demo.json"),
    images: Path = Path("docs/images"),
    limit: int = 64,
    shown: int = 3,
    seed: int = 0,
) -> None:
    """Draws pictures of a few images and measures the orders on some more.

    Args:
        model: The model.
        data: The images.
        pruner: A pruner fitted to the model.
        out: JSON file.
        images: Folder for the pictures and charts.
        limit: How many images the orders are measured on.
        shown: How many are shown.
        seed: Random seed.
    """
    loaded, pictures, results = load_model(model), load_data(data, limit, seed), Results(out)
    rows = results.once("orders", lambda: orders(loaded, pictures, seed)) + work(loaded.tower)
    for name, picture in shown_pictures(loaded, pictures, Pruner.from_pretrained(pruner), shown, seed).items():
        picture.quantize(128).save(images / f"which-{name}.png", optimize=True)
    results.write(environment(loaded.tower.device), rows, model=model, data=data)
    for name, svg in charts(rows).items():
        (images / f"which-{name}.svg").write_text(svg)


@torch.inference_mode()
def orders(model: LoadedModel, data: ImageData, seed: int) -> list[dict[str, Any]]:
    """Cosine to the dense feature by how many patches are left, in the golden order, backwards, and at random."""
    tower = model.tower
    found: dict[tuple[str, float], list[float]] = {}
    for index in range(len(data)):
        batch = _batch(model, data, index)
        with torch.inference_mode(False), torch.enable_grad():
            golden = golden_importance(Batch(tower, batch.pixels.clone()), BLOCK)
        with seeded(seed + index):
            noise = torch.rand(golden.shape)
        for order, scores in {"golden": golden, "random": noise, "golden, backwards": -golden}.items():
            for keep in KEEP:
                found.setdefault((order, keep), []).append(cosine(batch, scores, keep))
    return [
        {"order": order, "keep_rate": keep, "n_images": len(values), "feature_cosine": float(np.mean(values))}
        | dict(zip(("low", "high"), np.quantile(values, (0.1, 0.9)).tolist(), strict=True))
        for (order, keep), values in found.items()
    ]


def cosine(batch: Batch, scores: Tensor, keep: float) -> float:
    """Cosine to the dense feature of one image without the patches that score lowest."""
    tower, tokens = batch.tower, batch.entering(BLOCK)
    prefix = tower.num_prefix_tokens
    places = scores.topk(kept_count(keep, tower.num_patches)).indices.sort().values[0]
    kept = torch.cat([tokens[:, :prefix], tokens[:, prefix + places]], dim=1)
    return F.cosine_similarity(tower.pool(tower.run(kept, BLOCK)), batch.features).item()


def work(tower: VisionTower) -> list[dict[str, Any]]:
    """Share of the patches that each block sees, of schedules with the MACs of the default at keep 50 %."""
    staged = Schedule.default(tower.depth, 0.5)
    once = nearest_in_macs(tower, (Schedule({BLOCK: n / 100}) for n in range(1, 101)), staged)
    dense = analytic_macs(tower, 0, Schedule({1: 1.0}))
    return [
        {"schedule": name, "patches": _patches(tower.depth, own), "macs_share": analytic_macs(tower, 0, own) / dense}
        for name, own in {"in stages": staged, "at once": once}.items()
    ]


def _patches(depth: int, schedule: Schedule) -> list[float]:
    return [min([1.0, *(rate for at, rate in schedule.stages.items() if at <= block)]) for block in range(depth)]


def shown_pictures(
    model: LoadedModel, data: ImageData, pruner: Pruner, shown: int, seed: int
) -> dict[str, Image.Image]:
    """The pictures: the golden order, what goes at which stage, and what other methods keep."""
    tower, stages = model.tower, list(pruner.schedule.stages)
    by: dict[str, list[list[Image.Image]]] = {"ranking": [], "stages": [], "methods": []}
    for index in range(shown):
        batch = _batch(model, data, index)
        image = photo(model.picture(batch.pixels[0]), SIDE)
        golden = golden_importance(batch, BLOCK)[0]
        with torch.inference_mode():
            passed = passing(pruner, batch)
            by["ranking"].append(
                [image, heat_map(image, golden.view(tower.grid).numpy(), SIDE)]
                + [kept_view(image, _best(golden, keep, tower), SIDE) for keep in (0.75, 0.5, 0.25)]
            )
            by["stages"].append([image, *(kept_view(image, passed >= stage + 1, SIDE) for stage in range(len(stages)))])
            other = [METHODS[name].at(tower, pruner.schedule, seed).run(batch) for name in ("cls-attention", "random")]
            by["methods"].append(
                [image, kept_view(image, _best(golden, pruner.keep, tower), SIDE)]
                + [kept_view(image, passed == len(stages), SIDE)]
                + [kept_view(image, _places(one.keep_indices, tower), SIDE) for one in other]
                + [merged_view(image, merged_by_tome(batch, pruner.schedule), tower)]
            )
    sees = [(f"block {block}", f"sees {rate:.0%}") for block, rate in pruner.schedule.stages.items()]
    heads = {
        "ranking": [("image", ""), ("golden ranking", "bright = keep"), *((f"{n} %", "kept") for n in (75, 50, 25))],
        "stages": [("image", ""), *sees],
        "methods": [
            ("image", ""),
            *((name, f"{pruner.keep:.0%} kept") for name in ("golden", "patchranking", "CLS attention", "random")),
            ("ToMe", "merged patches"),
        ],
    }
    return {name: sheet(heads[name], rows, SIDE) for name, rows in by.items()}


def _batch(model: LoadedModel, data: ImageData, index: int) -> Batch:
    return Batch(model.tower, model.preprocess(data.image(index))[None])


def _best(importance: Tensor, keep: float, tower: VisionTower) -> np.ndarray:
    return _places(importance.topk(kept_count(keep, tower.num_patches)).indices[None], tower)


def _places(kept: Tensor | None, tower: VisionTower) -> np.ndarray:
    mask = torch.zeros(tower.num_patches, dtype=torch.bool)
    mask[... if kept is None else kept[0]] = True
    return mask.view(tower.grid).numpy()


def passing(pruner: Pruner, batch: Batch) -> np.ndarray:
    """How many stages of the pruner each patch of an image passes, ``(rows, columns)``."""
    reductions, passed = pruner.reductions(), torch.zeros(batch.tower.num_patches, dtype=torch.int64)
    for stages in range(1, len(reductions) + 1):
        some = dict(sorted(reductions.items())[:stages])
        start = min(some)
        kept = run_reduced(batch.tower, batch.entering(start), start, some).keep_indices
        passed[... if kept is None else kept[0]] += 1
    return passed.view(batch.tower.grid).numpy()


def merged_by_tome(batch: Batch, schedule: Schedule) -> Tensor:
    """For every patch of an image, the token that it is in at the end, ``(patches,)``."""
    tome, tower = ToMe(), batch.tower
    left = run_inside(tower, batch.entering(0), 0, tome.reductions(tower, tome.schedule(tower, schedule)))
    place = torch.arange(tower.num_patches)
    for into in left.into:
        place = into()[0][place]
    return place


def merged_view(image: Image.Image, place: Tensor, tower: VisionTower) -> Image.Image:
    """Every patch in the mean colour of those that it merged with."""
    rows, columns = tower.grid
    colours = torch.from_numpy(np.array(image.resize((columns, rows), Image.Resampling.BOX))).view(-1, 3).float()
    sums = torch.zeros(int(place.max()) + 1, 3).index_add(0, place, colours)
    means = (sums / place.bincount()[:, None])[place].round().byte().view(rows, columns, 3)
    large = Image.fromarray(means.numpy()).resize(image.size, Image.Resampling.NEAREST)
    return outlined(large, place.view(rows, columns).numpy())


def outlined(image: Image.Image, group: np.ndarray) -> Image.Image:
    """Draws a line between neighbours of different groups, ``(rows, columns)``."""
    canvas, side = np.array(image), image.width // group.shape[1]
    for row, column in np.argwhere(group[:, 1:] != group[:, :-1]):
        canvas[row * side : (row + 1) * side, (column + 1) * side] = 38, 42, 54
    for row, column in np.argwhere(group[1:] != group[:-1]):
        canvas[(row + 1) * side, column * side : (column + 1) * side] = 38, 42, 54
    return Image.fromarray(canvas)


def charts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Name -> SVG text of the charts."""
    return {"orders": _chart(_draw_orders, rows), "work": _chart(_draw_work, rows)}


def _chart(draw: Callable[[Axes, list[dict[str, Any]]], None], rows: list[dict[str, Any]]) -> str:
    with rc_context(LOOK):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, rows)
        axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return re.sub(r"[ \t]+\n", "\n", buffer.getvalue())


def _draw_orders(axes: Axes, rows: list[dict[str, Any]]) -> None:
    looks = {"golden": style("golden"), "random": style("random"), "golden, backwards": style("a-vit")}
    for order, look in looks.items():
        own = [row for row in rows if row.get("order") == order]
        kept = [100 * row["keep_rate"] for row in own]
        axes.plot(kept, [row["feature_cosine"] for row in own], color=look.colour, marker=look.marker, label=order)
        low, high = ([row[end] for row in own] for end in ("low", "high"))
        axes.fill_between(kept, low, high, color=look.colour, alpha=0.15, linewidth=0)
    axes.invert_xaxis()
    axes.set_xlabel("patches left (%)")
    axes.set_ylabel("cosine to the dense feature")


def _draw_work(axes: Axes, rows: list[dict[str, Any]]) -> None:
    looks = {"at once": "#9aa1ae", "in stages": style("patchranking").colour}
    for name, colour in looks.items():
        (own,) = (row for row in rows if row.get("schedule") == name)
        label = f"{name}: {own['macs_share']:.0%} of the dense MACs"
        steps = [*own["patches"], own["patches"][-1]]
        axes.step(range(len(steps)), [100 * share for share in steps], where="post", color=colour, label=label)
        axes.fill_between(range(len(steps)), [100 * share for share in steps], step="post", color=colour, alpha=0.15)
    axes.set_ylim(0, 105)
    axes.set_xlabel("block")
    axes.set_ylabel("patches it sees (%)")


if __name__ == "__main__":
    main(figures)
