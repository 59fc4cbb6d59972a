"""patchranking explore."""

from __future__ import annotations

import html
import threading
from pathlib import Path

from patchranking.errors import check_numbers
from patchranking.extras import import_extra

__all__ = ["explore"]


def explore(
    model: str = "demo",
    data: str = "demo:test",
    *,
    pruner: Path | None = None,
    limit: int = 100,
    port: int = 7860,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Opens a local page that shows what a method keeps of any picture, what that saves, and what the model then says.

    MODEL and DATA may stand right after the command, without their names.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        data: Images to take and to compare: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split],
            folders joined by commas, or a list of captions (.tsv, .csv, .json).
        pruner: Folder written by fit; without one the page has the methods that need no fit.
        limit: How many of the images, drawn by seed.
        port: Where the page is served on this machine, 0 for any port that is free.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    check_numbers({"port": port, "seed": seed}, port=0, seed=0)
    from patchranking.data import load_data  # here, so that --help need not wait for torch
    from patchranking.explore.look import Explorer
    from patchranking.methods.attach import fitted_pruner
    from patchranking.towers.load import load_model

    import_extra("gradio", "The explorer is a page of Gradio", "explore")
    from patchranking.explore.page import served

    artefact = None if pruner is None else fitted_pruner(pruner)
    explorer = Explorer(load_model(model, device), load_data(data, limit, seed), artefact)
    with served(explorer, about(model, data, pruner), port) as address:
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        threading.Event().wait()


def about(model: str, data: str, pruner: Path | None) -> str:
    """The sentence below the page's title, as HTML; it says how to get a pruner where there is none."""
    said = f"<code>{html.escape(model)}</code> on pictures of <code>{html.escape(data)}</code>, or on your own. "
    if pruner is not None:
        return f"{said}The pruner is <code>{html.escape(str(pruner))}</code>."
    pictures = "demo:train --preset quick" if model == "demo" else "PICTURES"
    fit = html.escape(f"patchranking fit {model} {pictures} --out runs/fit")
    return f"{said}No pruner is loaded: <code>{fit}</code> makes one, and <code>--pruner runs/fit</code> shows it."
