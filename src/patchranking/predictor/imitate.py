"""Imitation: a predictor learns golden rankings as lists (Phase II)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from patchranking.checkpoint import load_training, notes, save_training
from patchranking.errors import UserError
from patchranking.predictor.losses import listnet
from patchranking.predictor.measures import matching_rate
from patchranking.predictor.networks import Predictor
from patchranking.predictor.rows import Rows, split

__all__ = ["Imitation", "imitate"]

_HELD_OUT_BATCH = 256


@dataclass(frozen=True)
class Imitation:
    """What an imitation reached.

    Attributes:
        n_train: Images fitted to.
        n_held_out: Images held out to choose the epoch.
        epoch: The chosen epoch, from 1.
        loss: Its ListNet loss on the held-out images.
        matching_rate: Share of the golden top half found in the predicted top half, held-out images.
        chance: What random scores would reach.
    """

    n_train: int
    n_held_out: int
    epoch: int
    loss: float
    matching_rate: float
    chance: float


def imitate(
    predictor: Predictor,
    tokens: Rows,
    importance: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = listnet,
    epochs: int = 30,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    held_out: Tensor | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> Imitation:
    """Trains a predictor in place on cached tokens and keeps the epoch that is best on held-out images.

    Args:
        predictor: The network.
        tokens: Tokens that enter the pruned block, ``(views, images, prefix + patches, width)``, any floating type;
            every step draws one view of its images.
        importance: Golden importance ``(views, images, patches)``.
        loss: Function of predicted scores and golden importance.
        epochs: Passes over the images, under a cosine schedule down to a tenth.
        batch_size: Images per step.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        held_out: Indices of the images that choose the epoch, by their first view; a tenth when omitted.
        seed: Seed of the split and the order.
        checkpoint: File for the progress after every epoch; from one that is there, it goes on.

    Returns:
        The figures of the chosen epoch.

    Raises:
        UserError: If there are fewer than 4 images.
    """
    images = tokens.shape[1]
    if images < 4:
        raise UserError(f"A predictor needs at least 4 ranked images, better some hundreds, not {images}.")
    generator = torch.Generator().manual_seed(seed)
    train, held_out = split(images, held_out, generator)
    optimiser = torch.optim.AdamW(predictor.parameters(), lr=learning_rate, weight_decay=weight_decay)
    half = importance.shape[2] // 2
    best: Imitation | None = None
    best_state: dict[str, Tensor] = {}
    done = 0
    if checkpoint is not None and (about := notes(checkpoint)) is not None:
        best_state = load_training(checkpoint, predictor, optimiser)
        done, best = int(about["epoch"]), Imitation(**json.loads(about["best"]))
    draws = islice(_epochs(train, batch_size, tokens.shape[0], epochs, generator), done, None)
    with tqdm(total=epochs, initial=done, desc="imitate", unit="epoch") as bar:
        for epoch, batches in enumerate(draws, start=done + 1):
            predictor.train()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * _rate(epoch - 1, epochs)
            for batch, view in batches:
                optimiser.zero_grad(set_to_none=True)
                loss(predictor(tokens[view, batch].float()), importance[view, batch]).backward()
                optimiser.step()
            predictor.eval()
            with torch.inference_mode():
                scores = torch.cat([predictor(tokens[0, part].float()) for part in held_out.split(_HELD_OUT_BATCH)])
            value = loss(scores, importance[0, held_out]).item()
            if best is None or value < best.loss:
                rate = matching_rate(scores, importance[0, held_out], half)
                best = Imitation(len(train), len(held_out), epoch, value, rate, half / importance.shape[2])
                best_state = {name: weight.clone() for name, weight in predictor.state_dict().items()}
            if checkpoint is not None:
                about = {"epoch": str(epoch), "best": json.dumps(asdict(best))}
                save_training(checkpoint, predictor, optimiser, about, best_state)
            bar.update()
            bar.set_postfix(loss=f"{value:.3f}")
    assert best is not None
    predictor.load_state_dict(best_state)
    return best


def _rate(epoch: int, epochs: int) -> float:
    """Half a cosine from 1 to a tenth."""
    return 0.1 + 0.45 * (1 + math.cos(math.pi * epoch / epochs))


def _epochs(
    train: Tensor, batch_size: int, views: int, epochs: int, generator: torch.Generator
) -> Iterator[list[tuple[Tensor, int]]]:
    """The batches of every epoch, and the view that each is seen in."""
    for _ in range(epochs):
        batches = train[torch.randperm(len(train), generator=generator)].split(batch_size)
        yield [(batch, int(torch.randint(views, (), generator=generator))) for batch in batches]
