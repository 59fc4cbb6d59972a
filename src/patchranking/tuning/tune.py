"""Tuning: a few labelled images, or captioned ones, teach learnable tokens while pruning is active (Phase III)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from patchranking.checkpoint import digest
from patchranking.data import ImageData, read_batches
from patchranking.errors import UserError, check_numbers
from patchranking.files import make_folder, write_json
from patchranking.launch import launched
from patchranking.methods.measure import measure
from patchranking.methods.method import Encoded, Encoding
from patchranking.predictor.precision import TrainingPrecision
from patchranking.prompts.tokens import TOKENS, Prompts, TokensName
from patchranking.pruner import Pruner
from patchranking.seeding import seeded
from patchranking.towers import TextTower
from patchranking.towers.load import LoadedModel
from patchranking.tuning.checkpoint import Checkpoint
from patchranking.tuning.few_shot import few_shots, hold_out, passes, readable
from patchranking.tuning.learner import Learner
from patchranking.tuning.views import Views, augmentation

__all__ = ["TuneReport", "TuneSettings", "tune"]

CHECKPOINT = "tuning.safetensors"


@dataclass(frozen=True)
class TuneSettings:
    """How to tune; what the paper leaves open follows CoOp, in fewer epochs.

    Attributes:
        tokens: Text context, visual tokens, or both.
        num_tokens: Tokens of each encoder; the paper has 16.
        depth: Blocks that get fresh tokens; 1 is shallow.
        coupled: Make visual tokens a learned linear map of the text tokens, as in the paper; otherwise they are free.
        class_specific: Give each class a text context of its own.
        init_text: Phrase that text tokens start from, repeated; visual tokens then start from the mean patch. Empty for
            random tokens.
        shots: Images per class; of captioned images, all are used.
        epochs: Passes over the images.
        batch_size: Images per step, over all devices.
        learning_rate: Of SGD with momentum 0.9: linear warm-up over the first epoch, then a cosine to zero.
        weight_decay: Of SGD.
        held_out_share: Share of the images held out, to stop early and to choose the epoch; 0 for none.
        patience: Epochs without improvement on the held-out images before it stops.
        augment: Tune on random crops, mirrored half of the time; false where a mirror changes what a picture means.
        precision: 32-true, or bf16-mixed with float32 master weights, the default on a GPU.
        workers: Processes that read images.
        seed: Random seed of shots, tokens, order and views.
    """

    tokens: TokensName = "both"
    num_tokens: int = 16
    depth: int = 1
    coupled: bool = True
    class_specific: bool = False
    init_text: str = "a photo of a"
    shots: int = 16
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 5e-4
    held_out_share: float = 0.0
    patience: int = 5
    augment: bool = True
    precision: TrainingPrecision | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(vars(self), num_tokens=1, depth=1, shots=1, epochs=1, batch_size=1, patience=1, workers=0, seed=0)
        check_numbers(vars(self), learning_rate=0.0, weight_decay=0.0, held_out_share=0.0)
        if not self.learning_rate:
            raise UserError("At a learning rate of 0 nothing is learned: give one above 0, such as 0.002.")
        if self.tokens not in TOKENS:
            raise UserError(f"Unknown tokens '{self.tokens}': choose from {', '.join(TOKENS)}.")


@dataclass(frozen=True)
class TuneReport:
    """What a tuning did.

    Attributes:
        n_tuned: Images tuned on.
        n_held_out: Images held out.
        skipped: Key -> why an image could not be read.
        steps: Optimiser steps.
        loss: Mean loss of every epoch.
        held_out: Share of the held-out images that find their class or caption, after every epoch.
        epoch: The epoch chosen, from 1.
    """

    n_tuned: int
    n_held_out: int
    skipped: dict[str, str]
    steps: int
    loss: list[float]
    held_out: list[float]
    epoch: int


def tune(
    model: LoadedModel,
    data: ImageData,
    pruner: Pruner,
    out: str | Path,
    settings: TuneSettings = TuneSettings(),
) -> tuple[Pruner, TuneReport]:
    """Tunes learnable tokens on the pruned model and saves them; both encoders and the predictors stay as they are.

    The loss is cross-entropy over cosine logits for classes, and for captions a batch's symmetric contrastive loss. A
    killed tuning resumes from ``out`` and, on a CPU, ends with the same tokens. Started by ``torchrun`` it
    runs on several devices, which share the batch (Lightning Fabric).

    Args:
        model: The model.
        data: Labelled images, of which shots are drawn, or captioned ones, all used.
        pruner: Fitted to the model; it tunes at its keep rate, 1 for the dense model.
        out: Folder for the progress, the pruner with its tokens and ``tune.json``.
        settings: How to tune.

    Returns:
        The pruner with its tokens, and a report.

    Raises:
        UserError: If the model has no text encoder, the pruner was fitted to hand on tokens, the images have neither
            classes nor captions, the tokens do not fit, the folder holds the progress of another tuning, or the loss
            is not finite.
        MissingExtraError: If lightning-fabric or torchvision is not installed.
    """
    pruner.base.check(model.tower)
    if pruner.hands_on is not None:
        raise UserError("Tuning is by the image feature, and this pruner was fitted with --target tokens: fit another.")
    if model.text is None:
        raise UserError(f"Tuning needs a text encoder, and '{model.name}' has none: choose a CLIP.")
    view = augmentation(model) if settings.augment else model.preprocess
    if data.captions is None:
        chosen, skipped = few_shots(data, settings.shots, settings.seed)
    else:
        chosen, skipped = readable(data)
    folder = make_folder(out)
    tuned_on, held_out = hold_out(chosen, data.labels, settings.held_out_share)
    an_epoch = math.ceil(len(tuned_on) / settings.batch_size)
    steps = settings.epochs * an_epoch
    items = Views(data, passes(tuned_on, steps * settings.batch_size, settings.seed), view, settings.seed)

    fabric = launched(model.device, settings.precision, "Tuning needs lightning-fabric", "tune")
    model.model.to(fabric.device)
    pruner.to(fabric.device).requires_grad_(False)
    prompts = _prompts(model, model.text, data, tuned_on, settings).to(fabric.device)
    learner = Learner(prompts, model, model.text, pruner, data)
    optimiser = torch.optim.SGD(prompts.parameters(), 0.0, momentum=0.9, weight_decay=settings.weight_decay)
    checkpoint = Checkpoint(folder / CHECKPOINT, _identity(model, data, pruner, chosen, settings), prompts, optimiser)
    progress = checkpoint.resume()
    module, optimiser = fabric.setup(learner, optimiser)
    rest = Subset(items, range(progress.step * settings.batch_size, len(items)))
    share = max(1, settings.batch_size // fabric.world_size)
    loader = fabric.setup_dataloaders(DataLoader(rest, share, num_workers=settings.workers))
    with tqdm(total=steps, initial=progress.step, desc="tune", unit="step", disable=not fabric.is_global_zero) as bar:
        for pixels, target in loader:
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * _rate(progress.step, an_epoch, steps)
            loss = _loss(module, pixels, target, data)
            if not loss.isfinite():
                raise UserError("The loss is no longer finite: choose a lower learning rate.")
            optimiser.zero_grad()
            fabric.backward(loss)
            optimiser.step()
            progress.step += 1
            progress.total += float(fabric.all_reduce(loss.detach()))
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.4f}")
            if progress.step % an_epoch:
                continue
            progress.loss.append(progress.total / an_epoch)
            progress.total = 0.0
            if held_out:
                progress.held_out.append(_found(learner, model, data, held_out))
            if fabric.is_global_zero:
                checkpoint.save(progress, best=bool(held_out) and progress.best_epoch == len(progress.loss))
            if held_out and len(progress.loss) - progress.best_epoch >= settings.patience:
                break
    fabric.barrier()
    if held_out:
        checkpoint.load_best()
    with torch.no_grad():
        if data.captions is None:
            prompts.class_features.copy_(learner.text_features(_class_texts(data)))
    report = TuneReport(
        len(tuned_on), len(held_out), skipped, progress.step, progress.loss, progress.held_out, progress.best_epoch
    )
    tuned = pruner.tuned_by(prompts)
    if fabric.is_global_zero:
        tuned.save_pretrained(folder)
        about = {"data": f"{data.name}/{data.split}", "keep": pruner.keep}
        write_json(folder / "tune.json", asdict(report) | asdict(settings) | about)
    return tuned, report


def _class_texts(data: ImageData) -> list[str]:
    return [f"{name}." for name in data.class_names]


def _loss(module: Callable[..., Tensor], pixels: Tensor, target: Tensor | list[str], data: ImageData) -> Tensor:
    if isinstance(target, Tensor):
        return F.cross_entropy(module(pixels, _class_texts(data)), target)
    logits = module(pixels, list(target))
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@torch.no_grad()
def _found(learner: Learner, model: LoadedModel, data: ImageData, held_out: list[int]) -> float:
    """Share of the held-out images whose most similar text is their class, or their first caption."""
    classes = None if data.captions is not None else learner.text_features(_class_texts(data))
    encoding = Encoding(
        model.tower, learner.schedule, lambda batch: Encoded(learner.image_features(batch.pixels)), classes=classes
    )
    tally = measure(model, data, {"tuned": encoding}, held_out, set(held_out), progress=None)
    if data.captions is None:
        return (tally.mean("tuned", "top1") or 0.0) / 100
    images, features = tally.features("tuned")
    texts = learner.text_features([data.captions[image][0] for image in images]).float().cpu()
    return (features @ texts.T).argmax(1).eq(torch.arange(len(images))).float().mean().item()


def _rate(step: int, warm_up: int, steps: int) -> float:
    """A linear warm-up, then half a cosine to zero."""
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _prompts(
    model: LoadedModel, text: TextTower, data: ImageData, tuned_on: list[int], settings: TuneSettings
) -> Prompts:
    text_width = 0 if text.embedding is None else text.embedding.embedding_dim
    if not text_width and settings.tokens != "visual":
        raise UserError("Text tokens need the built-in text encoder of open_clip or transformers: tune visual tokens.")
    with seeded(settings.seed):
        prompts = Prompts(
            settings.tokens,
            text_width,
            model.tower.width,
            settings.num_tokens,
            settings.depth,
            settings.coupled,
            settings.class_specific,
            data.class_names,
            model.tower.feature_size if data.class_names else 0,
        )
    if settings.init_text:
        embedded = torch.zeros(1, text_width)
        if text.embedding is not None:
            ids = text.tokenize([settings.init_text, ""])
            embedded = text.embedding(ids[0][~torch.isin(ids[0], ids[1])]).float().cpu()
        prompts.start_from(
            embedded, _mean_patches(model, data, tuned_on[:: max(1, len(tuned_on) // 32)], settings.depth)
        )
    return prompts


@torch.no_grad()
def _mean_patches(model: LoadedModel, data: ImageData, images: list[int], depth: int) -> Tensor:
    """Mean patch that enters each of the first blocks of the dense model, ``(depth, width)``."""
    tower = model.tower
    _, pixels = next(read_batches(data, model.preprocess, len(images), {}, images))
    tokens, means = tower.embed(pixels.to(tower.device, tower.dtype)), []
    for block in range(depth):
        means.append(tokens[:, tower.num_prefix_tokens :].mean((0, 1)).float().cpu())
        tokens = tower.run(tokens, block, block + 1) if block + 1 < depth else tokens
    return torch.stack(means)


def _identity(model: LoadedModel, data: ImageData, pruner: Pruner, chosen: list[int], settings: TuneSettings) -> str:
    of = {
        "model": model.name,
        "schedule": pruner.schedule.to_dict(),
        "images": digest([data.keys[index] for index in chosen]),
        "predictor": digest(pruner.untuned.state_dict()),
    }
    return json.dumps(asdict(settings) | of)
