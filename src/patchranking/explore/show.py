"""What the page shows, as pieces of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from PIL import Image

from patchranking.explore.disagree import Disagreement, Disagreements
from patchranking.explore.drawing import merged_view, small_view
from patchranking.explore.look import Look, Seen
from patchranking.explore.trace import Stage, some
from patchranking.report.pictures import heat_map, kept_view, photo
from patchranking.report.styles import style
from patchranking.report.template import fill
from patchranking.report.text import PERCENT, number, percent
from patchranking.report.wall import source

__all__ = ["LABELS", "caption_of", "compared", "shown", "wrong"]

LABELS = {
    "patchranking": "patchranking",
    "cls-attention": "CLS attention",
    "evit": "EViT",
    "tome": "ToMe",
    "low-res": "low resolution",
}
"""Name of a method -> what the page calls it."""

_SIDE = 224
_MERGING = ("tome",)
_FUSING = ("evit",)


def shown(look: Look, notes: Sequence[str] = ()) -> str:
    """A picture under a method: what is saved, what the model says, and which patches went.

    Args:
        look: What there is to show.
        notes: Sentences about the picture.
    """
    seen, dense = look.seen, style("dense").colour
    own, label = style(seen.method).colour, LABELS[seen.method]
    before, after = seen.milliseconds
    sides = [
        _side("dense", dense, photo(seen.picture, _SIDE), _patches(seen.grid), before, look, "dense"),
        _side(label, own, _last(seen), _left(seen), after, look, "pruned"),
    ]
    tiles = [
        (number(seen.cosine, 3), "cosine to the dense feature"),
        (percent(round(seen.share, 3)), "of the dense MACs"),
        (f"{number(before / after, 2)}×", "the dense speed, this picture alone"),
    ]
    if look.caption is not None:
        tiles.append((" → ".join(number(one, 3) for one in look.caption), "cosine to the caption, dense → pruned"))
    return _filled("look", notes=notes, verdict=_verdict(look), tiles=tiles, sides=sides, strip=_strip(seen))


def wrong(error: Exception) -> str:
    """An error on the page: its sentence."""
    return _filled("wrong", sentence=str(error))


def compared(found: Disagreements, method: str, share: float) -> str:
    """What comparing a sample of images gave, in words."""
    said = f"{LABELS[method]} at {percent(share)} of the dense MACs, {found.compared} images: "
    if found.changed is not None:
        said += f"{found.changed} get another class than from the dense model, "
    said += f"mean cosine {number(found.cosine, 3)}."
    if found.skipped:
        key, why = next(iter(found.skipped.items()))
        said += f" {len(found.skipped)} could not be used, such as {key}: {why}."
    return _filled("note", sentence=said)


def caption_of(one: Disagreement) -> str:
    """What stands below an image on which the two disagree."""
    cosine = number(one.cosine, 3)
    if one.dense is None:
        return cosine
    return f"{cosine} · {one.dense} → {one.pruned}" if one.changed else f"{cosine} · {one.dense}"


def _filled(name: str, **values: Any) -> str:
    return fill(files("patchranking.explore").joinpath("show.html.j2").read_text("utf-8"), kind=name, **values)


def _side(
    label: str, colour: str, picture: Image.Image, patches: str, milliseconds: float, look: Look, which: str
) -> dict[str, Any]:
    classes = [] if look.said is None else getattr(look.said, which)
    return {
        "label": label,
        "colour": colour,
        "picture": source(picture),
        "patches": patches,
        "milliseconds": number(milliseconds, 1),
        "classes": [(name, f"{number(100 * share, 1)}{PERCENT}", round(100 * share, 1)) for name, share in classes],
        "changed": which == "pruned" and look.said is not None and look.said.changed,
    }


def _verdict(look: Look) -> str:
    if look.said is None:
        return ""
    dense, pruned = look.said.dense[0][0], look.said.pruned[0][0]
    return f"The class changes, from {dense} to {pruned}." if look.said.changed else f"Both say {dense}."


def _strip(seen: Seen) -> list[dict[str, str]]:
    """The ranking and the stages, as pictures with a line below."""
    found = []
    if seen.importance is not None:
        ranking = heat_map(seen.picture, seen.importance, _SIDE)
        found.append({"picture": source(ranking), "head": "the ranking", "note": "dark goes first, bright stays"})
    for stage in some(seen.stages):
        where = "inside" if seen.method in _MERGING + _FUSING else "before"
        head = f"{where} block {stage.block}"
        found.append({"picture": source(_stage(seen, stage)), "head": head, "note": _count(seen, stage)})
    return found


def _stage(seen: Seen, stage: Stage) -> Image.Image:
    if seen.method in _MERGING:
        return merged_view(seen.picture, stage.tokens, _SIDE)
    return kept_view(seen.picture, stage.kept, _SIDE)


def _last(seen: Seen) -> Image.Image:
    """What is left at the end."""
    if seen.stages:
        return _stage(seen, seen.stages[-1])
    return small_view(seen.picture, seen.run, seen.patch, _SIDE)


def _left(seen: Seen) -> str:
    return _count(seen, seen.stages[-1]) if seen.stages else _patches(seen.run)


def _count(seen: Seen, stage: Stage) -> str:
    patches = stage.tokens.size
    if seen.method in _MERGING:
        return f"{stage.count} tokens for {patches} patches"
    fused = " and 1 for the others" if seen.method in _FUSING and stage.count < patches else ""
    return f"{stage.count} of {patches} patches{fused}"


def _patches(grid: tuple[int, int]) -> str:
    rows, columns = grid
    return f"{rows * columns} patches, {rows} × {columns}"
