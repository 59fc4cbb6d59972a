"""Imitation: a predictor learns golden rankings as lists (Phase II)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from patchranking.errors import UserError
from patchranking.predictor.losses import listnet
from patchranking.predictor.measures import matching_rate
from patchranking.predictor.networks import Predictor

__all__ = ["Imitation", "imitate"]


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
    tokens: Tensor,
    importance: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = listnet,
    epochs: int = 30,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    held_out_share: float = 0.1,
    seed: int = 0,
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
        held_out_share: Share of the images that choose the epoch, by their first view.
        seed: Seed of the split and the order.

    Returns:
        The figures of the chosen epoch.

    Raises:
        UserError: If there are fewer than 4 images.
    """
    images = tokens.shape[1]
    if images < 4:
        raise UserError(f"A predictor needs at least 4 ranked images, better some hundreds, not {images}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(images, generator=generator)
    n_held_out = max(1, round(held_out_share * images))
    held_out, train = order[:n_held_out], order[n_held_out:]
    optimiser = torch.optim.AdamW(predictor.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs, learning_rate / 10)
    half = importance.shape[2] // 2
    best: Imitation | None = None
    best_state: dict[str, Tensor] = {}
    with tqdm(range(1, epochs + 1), desc="imitate", unit="epoch") as bar:
        for epoch in bar:
            predictor.train()
            for batch in train[torch.randperm(len(train), generator=generator)].split(batch_size):
                view = int(torch.randint(len(tokens), (), generator=generator))
                optimiser.zero_grad(set_to_none=True)
                loss(predictor(tokens[view, batch].float()), importance[view, batch]).backward()
                optimiser.step()
            schedule.step()
            predictor.eval()
            with torch.inference_mode():
                scores = predictor(tokens[0, held_out].float())
            value = loss(scores, importance[0, held_out]).item()
            if best is None or value < best.loss:
                rate = matching_rate(scores, importance[0, held_out], half)
                best = Imitation(len(train), len(held_out), epoch, value, rate, half / importance.shape[2])
                best_state = {name: weight.clone() for name, weight in predictor.state_dict().items()}
            bar.set_postfix(loss=f"{value:.3f}")
    assert best is not None
    predictor.load_state_dict(best_state)
    return best
