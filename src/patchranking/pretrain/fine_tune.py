"""Fine-tuning of a trained encoder on labels, by the parts of timm's recipe."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from patchranking.errors import UserError, check_numbers
from patchranking.extras import import_extra
from patchranking.pretrain.encoder import data_config_of
from patchranking.pretrain.pictures import Batches, Pictures, Shuffled, Views
from patchranking.pretrain.probe import Labelled, features_of
from patchranking.pretrain.schedule import cosine_rate, warmed_up
from patchranking.seeding import nth_seed, seeded_everywhere

__all__ = ["FineTuneSettings", "fine_tune"]


@dataclass(frozen=True)
class FineTuneSettings:
    """How to fine-tune: the recipe of DeiT and MAE (AdamW, layer decay, mixup, cutmix, random erasing, drop path).

    Attributes:
        epochs: Passes over the images.
        batch_size: Images per step.
        learning_rate: Of AdamW at 256 images per step; it is scaled by batch_size / 256.
        layer_decay: Factor of the learning rate from each block to the one before it.
        weight_decay: Of AdamW, on matrices alone.
        warm_up: Share of the steps in which the learning rate rises; then it falls by half a cosine.
        drop_path: Largest rate of stochastic depth.
        mixup: Of pairs of images.
        cutmix: Of pairs of images.
        erase: Share of the images with a random part erased.
        smoothing: Of the labels.
        seed: Random seed of the head, order, views and what is dropped.
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 5e-4
    layer_decay: float = 0.65
    weight_decay: float = 0.05
    warm_up: float = 0.05
    drop_path: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    erase: float = 0.25
    smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(vars(self), epochs=1, batch_size=2, seed=0)
        check_numbers(vars(self), **dict.fromkeys(("learning_rate", "layer_decay", "weight_decay", "warm_up"), 0.0))
        if self.batch_size % 2:
            raise UserError(f"Images are mixed in pairs: give an even 'batch_size', not {self.batch_size}.")


def fine_tune(encoder: nn.Module, pictures: Pictures, test: Labelled, settings: FineTuneSettings) -> float:
    """The accuracy that a copy of an encoder reaches on labels, with whole images and all tokens.

    Args:
        encoder: A timm vision transformer; it stays as it is.
        pictures: Labelled pictures to train on.
        test: Others of the same classes, as the encoder takes them.
        settings: How to fine-tune.

    Returns:
        Share of the test images that get their class.

    Raises:
        UserError: If the pictures have no classes.
    """
    if pictures.data.labels is None:
        raise UserError("Fine-tuning needs classes: give a folder with one sub-folder a class.")
    lightly, data, optim = (
        import_extra(name, "Fine-tuning needs timm and lightly", "pretrain")
        for name in ("lightly.models.utils", "timm.data", "timm.optim")
    )
    device, classes = next(encoder.parameters()).device, len(pictures.data.class_names)
    model: Any = copy.deepcopy(encoder).requires_grad_(True)
    with seeded_everywhere(settings.seed):
        model.reset_classifier(classes)
    lightly.update_drop_path_rate(model, settings.drop_path, mode="linear")
    model.to(device).train()
    peak = settings.learning_rate * settings.batch_size / 256
    optimiser = optim.create_optimizer_v2(model, "adamw", peak, settings.weight_decay, layer_decay=settings.layer_decay)
    shown = data_config_of(encoder)
    view = data.create_transform(
        shown["input_size"], is_training=True, mean=shown["mean"], std=shown["std"], re_prob=settings.erase
    )
    mix = data.Mixup(
        settings.mixup,
        settings.cutmix,
        prob=float(settings.mixup + settings.cutmix > 0),
        label_smoothing=settings.smoothing,
        num_classes=classes,
    )
    views = Views(pictures, Shuffled(len(pictures), settings.seed), lambda picture: [view(picture)], settings.seed)
    loader = DataLoader(_LabelledViews(views, pictures), batch_sampler=Batches(0, settings.batch_size))
    steps = settings.epochs * max(1, len(pictures) // settings.batch_size)
    for step, (pixels, labels) in zip(tqdm(range(steps), desc="fine-tune", unit="step"), loader, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = peak * group.get("lr_scale", 1.0) * warmed_up(step / steps, settings.warm_up, cosine_rate)
        with seeded_everywhere(nth_seed(settings.seed, step)):
            mixed, target = mix(pixels.to(device), labels.to(device))
            loss = -(target * model(mixed).log_softmax(1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return features_of(model.eval(), test.pixels).argmax(1).eq(test.labels).float().mean().item()


class _LabelledViews(Dataset[tuple[Tensor, int]]):
    """The first view of each item and the class of its picture."""

    def __init__(self, views: Views, pictures: Pictures) -> None:
        self._views, self._pictures = views, pictures

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        labels = self._pictures.data.labels
        assert labels is not None
        return self._views[item][0], labels[self._pictures.indices[self._views.place_of(item)]]
