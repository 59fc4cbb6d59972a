"""Which models work: every configuration of open_clip, every class of transformers that is known, and models of timm.

    python benchmarks/coverage.py --out benchmarks/results/coverage.json

Models are of the real classes, cut to a few blocks and 4 x 4 patches, and their weights are drawn, so nothing is
downloaded. A run that is killed goes on after the last finished model.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Results, main
from cut_models import Cut, image_tower, of_open_clip, of_timm, of_transformers
from families import Listed, listed
from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.errors import UserError, reason
from patchranking.evaluation.environment import environment
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Reduction, run_reduced
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens
from patchranking.towers import VisionTower, as_tower

CHECKS = ("dense", "keep_1", "masked", "detached", "compiled", "exported")
SCHEDULE = Schedule({1: 0.75, 2: 0.5})
TOLERANCE = 1e-5
"""Of the largest entry of the features, where they cannot be the same bits."""
_MAKERS: Mapping[str, Callable[[str], Cut]] = {
    "open_clip": of_open_clip,
    "transformers": of_transformers,
    "timm": of_timm,
}


def coverage(out: Path = Path("benchmarks/results/coverage.json"), only: str = "") -> None:
    """Tries every model and writes what holds for it.

    Args:
        out: The JSON file.
        only: Try models with this in their name alone.
    """
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    results, rows = Results(out), []
    for one in listed():
        if only in one.name:
            rows.append(results.once(f"{one.library} {one.name}", partial(row_of, one)))
            print(_verdict(rows[-1]), flush=True)
    results.write(environment(torch.device("cpu")), rows, checks=CHECKS)


def row_of(one: Listed, checks: Sequence[str] = CHECKS) -> dict[str, Any]:
    """What holds for a model; a check that could not run is null, and ``errors`` says why."""
    torch.manual_seed(0)
    row: dict[str, Any] = asdict(one) | {"image_tower": image_tower(one.library, one.name)}
    row |= {"supported": True, "sentence": None, **dict.fromkeys(CHECKS), "errors": {}}
    try:
        cut = _MAKERS[one.library](one.name)
        tried = _Tried(cut, as_tower(cut.model))
    except UserError as error:
        return row | {"supported": False, "sentence": str(error)}
    except Exception as error:
        return row | {"supported": False, "errors": {"made": reason(error, 200)}}
    for name in checks:
        try:
            with torch.no_grad():
                wrong = getattr(tried, name)()
        except Exception as error:
            row["errors"][name] = reason(error, 200)
        else:
            row[name] = wrong is None
            row["errors"] |= {} if wrong is None else {name: wrong}
    return row


class _Tried:
    """A model on three random pictures; every check returns what is wrong, or None."""

    def __init__(self, cut: Cut, tower: VisionTower) -> None:
        self.cut, self.tower = cut, tower
        self.pixels = torch.randn(3, 3, *tower.image_size)
        with torch.no_grad():
            self.expected = cut.encode(self.pixels)

    def dense(self) -> str | None:
        """The tower has the library's features, to the bit, and they differ from picture to picture."""
        if self.expected.std(0).max() < 1e-3:
            return "all pictures have the same features"
        return _different(self.tower(self.pixels), self.expected)

    def keep_1(self) -> str | None:
        """With a pruner that keeps every patch, the library's features are the same bits."""
        pruner = self._pruner()
        pruner.keep = 1.0
        with pruner.attached(self.cut.model):
            return _different(self.cut.encode(self.pixels), self.expected)

    def masked(self) -> str | None:
        """Pruned in two stages, it has the features of the model in which dropped patches are hidden, not gone."""
        pruner = self._pruner()
        hidden = masked_features(self.tower, pruner.reductions(), self.pixels)
        with pruner.attached(self.cut.model):
            found = self.cut.encode(self.pixels)
        if _close(found, self.expected, 100 * TOLERANCE):
            return "the features of all patches and of half of them are the same"
        return _apart(found, hidden)

    def detached(self) -> str | None:
        """After a pruner has gone, the features are the same bits as before."""
        with self._pruner().attached(self.cut.model):
            self.cut.encode(self.pixels)
        return _different(self.cut.encode(self.pixels), self.expected)

    def compiled(self) -> str | None:
        """The library's call on the pruned model compiles to one graph."""
        torch.compiler.reset()
        with self._pruner().attached(self.cut.model):
            compiled = torch.compile(lambda pixels: self.cut.encode(pixels), fullgraph=True, backend="eager")
            return _apart(compiled(self.pixels), self.cut.encode(self.pixels))

    def exported(self) -> str | None:
        """The pruned model is exported with torch.export."""
        torch.compiler.reset()
        pruner = self._pruner()
        with pruner.attached(self.cut.model):
            whole = _Whole(self.cut, pruner).eval()
            program = torch.export.export(whole, (self.pixels,), strict=False)
            return _apart(program.module()(self.pixels), self.cut.encode(self.pixels))

    def _pruner(self) -> Pruner:
        torch.manual_seed(1)
        return Pruner.unfitted(self.tower, "cut", SCHEDULE)


class _Whole(nn.Module):
    """A model and its pruner, so that an exported program holds the weights of both."""

    def __init__(self, cut: Cut, pruner: Pruner) -> None:
        super().__init__()
        self.model, self.pruner, self.encode = cut.model, pruner, cut.encode

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode(pixels)


def masked_features(tower: VisionTower, reductions: Mapping[int, Reduction], pixels: Tensor) -> Tensor:
    """Features where nothing sees the patches that reductions drop, from the block on that drops them."""
    first = tokens = tower.embed(pixels)
    prefix, bias = tower.num_prefix_tokens, None
    left = torch.arange(tower.num_patches).expand(len(pixels), -1)
    for block in range(tower.depth):
        if block in reductions:
            earlier = {key: reduce for key, reduce in reductions.items() if key <= block}
            kept = run_reduced(tower, first, 0, earlier, stop=block).keep_indices
            assert kept is not None
            left = kept
            seen = torch.zeros(len(pixels), tower.num_patches).scatter(1, left, 1.0)
            bias = F.pad(seen.log(), (prefix, 0))
        tokens = _run(tower, tokens, block, bias)
    return tower.pool(gather_tokens(tokens, left, prefix))


def _run(tower: VisionTower, tokens: Tensor, block: int, bias: Tensor | None) -> Tensor:
    """One block, by its halves where the library's own takes no mask."""
    try:
        return tower.run(tokens, block, block + 1, bias)
    except UserError:
        return tower.feed_forward(tower.attend(tokens, block, bias).tokens, block)


def _different(found: Tensor, expected: Tensor) -> str | None:
    return None if torch.equal(found, expected) else f"differs by {(found - expected).abs().max():.1e}"


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _apart(found: Tensor, expected: Tensor) -> str | None:
    share = (found - expected).abs().max() / expected.abs().max()
    return None if _close(found, expected, TOLERANCE) else f"differs by {share:.1e} of the largest entry"


def _verdict(row: Mapping[str, Any]) -> str:
    if not row["supported"]:
        return f"  refused: {row['sentence'] or row['errors']}"
    return f"  {row['image_tower']}: {row['errors'] or 'all checks hold'}"


if __name__ == "__main__":
    main(coverage)
