"""patchranking tune."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from patchranking.commands.common import load, make_folder, print_skipped
from patchranking.data import ClassesName, load_data, of_classes
from patchranking.files import write_json
from patchranking.prompts.tokens import TokensName
from patchranking.pruner import Pruner
from patchranking.tuning.tune import TuneSettings
from patchranking.tuning.tune import tune as tune_tokens

__all__ = ["tune"]


def tune(
    model: str,
    data: str,
    pruner: Path = Path("runs/fit"),
    out: Path = Path("runs/tune"),
    tokens: TokensName = "both",
    shots: int = 16,
    keep: float | None = None,
    num_tokens: int = 16,
    depth: int = 1,
    coupled: bool = True,
    class_specific: bool = False,
    init_text: str = "a photo of a",
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    held_out_share: float = 0.0,
    augment: bool = True,
    precision: Literal["32-true", "bf16-mixed"] | None = None,
    workers: int = 0,
    classes: ClassesName = "all",
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Tunes learnable tokens on the pruned model with a few shots (Phase III); resumes after a kill.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH or hf:NAME_OR_PATH.
        data: Labelled images: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by
            commas; or a list of captions (.tsv, .csv, .json).
        pruner: Folder written by fit.
        out: Folder for the pruner with its tokens.
        tokens: Text context, visual tokens, or both.
        shots: Images a class; of captioned images, all are used.
        keep: Keep rate to tune at, 1 for the dense model; the pruner's own when omitted.
        num_tokens: Tokens of each encoder.
        depth: Blocks that get fresh tokens; 1 is shallow.
        coupled: Make visual tokens a learned linear map of the text tokens, as in the paper.
        class_specific: Give each class a text context of its own.
        init_text: Phrase that text tokens start from, repeated; visual ones start from the mean patch; '' for random.
        epochs: Passes over the images.
        batch_size: Images a step, over all devices.
        learning_rate: Of SGD.
        held_out_share: Share of the images held out, to stop early and choose the epoch.
        augment: Tune on random crops, mirrored half of the time; false where a mirror changes what a picture means.
        precision: 32-true, or bf16-mixed with float32 master weights, the default on a GPU.
        workers: Processes that read images.
        classes: All classes, the first half of them (base), or the second (new).
        limit: At most so many images, drawn by seed, of which shots are drawn.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    artefact = Pruner.from_pretrained(pruner).untuned
    if keep is not None:
        artefact.keep = keep
    loaded = load(model, device, seed)
    images = of_classes(load_data(data, limit, seed, "train"), classes)
    make_folder(out)
    settings = TuneSettings(
        tokens=tokens,
        num_tokens=num_tokens,
        depth=depth,
        coupled=coupled,
        class_specific=class_specific,
        init_text=init_text,
        shots=shots,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        held_out_share=held_out_share,
        augment=augment,
        precision=precision,
        workers=workers,
        seed=seed,
    )
    tuned, report = tune_tokens(loaded, images, artefact, out, settings)
    if os.environ.get("RANK", "0") != "0":
        return
    tuned.save_pretrained(out)
    write_json(out / "tune.json", asdict(report) | asdict(settings) | {"data": data, "keep": artefact.keep})
    print(f"loss {report.loss[0]:.4f} in the first epoch, {report.loss[-1]:.4f} in the last")
    if report.held_out:
        print(f"{max(report.held_out):.1%} of {report.n_held_out} held-out images right after epoch {report.epoch}")
    left_out = len(images) - report.n_tuned - report.n_held_out - len(report.skipped)
    print(
        f"{len(images)} images in = {report.n_tuned} tuned on + {report.n_held_out} held out + {len(report.skipped)} "
        f"skipped + {left_out} not drawn; wrote {out}"
    )
    print_skipped(report.skipped)
