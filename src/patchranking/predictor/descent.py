"""The descent of a distillation, which goes on where it was killed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from patchranking.checkpoint import load_training, notes, save_training

__all__ = ["descend"]

_WARM_UP = 20
_SECONDS_PER_SAVE = 5.0

Draw = TypeVar("Draw")


def descend(
    module: nn.Module,
    draws: Iterator[Draw],
    loss_of: Callable[[int, Draw], Tensor],
    steps: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    checkpoint: Path | None = None,
) -> None:
    """Trains a module in place, with AdamW, a warm-up and half a cosine down to a twentieth; it ends in eval mode.

    Args:
        module: What is trained; nothing else gets a gradient.
        draws: What every step is about, the same in every run.
        loss_of: The loss of a step, by its number and what was drawn.
        steps: Optimiser steps.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        checkpoint: File for the progress every few seconds; from one that is there, it goes on.
    """
    weights = list(module.parameters())
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    done, saved = 0, time.monotonic()
    if checkpoint is not None and (about := notes(checkpoint)) is not None:
        load_training(checkpoint, module, optimiser)
        done = int(about["step"])
    module.train()
    with tqdm(total=steps, initial=done, desc="distill", unit="step") as bar:
        for step, draw in enumerate(islice(draws, done, steps), start=done):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * _rate(step, steps)
            loss = loss_of(step, draw)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.4f}")
            if checkpoint is not None and (step + 1 == steps or time.monotonic() - saved > _SECONDS_PER_SAVE):
                save_training(checkpoint, module, optimiser, {"step": str(step + 1)})
                saved = time.monotonic()
    module.eval()


def _rate(step: int, steps: int) -> float:
    """Warm-up, then half a cosine from 1 to a twentieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    return min(1.0, (step + 1) / _WARM_UP) * (0.05 + 0.95 * cosine)
