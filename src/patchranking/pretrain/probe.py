"""How good features are: weighted k nearest neighbours and a linear probe, on a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.data import ImageData, read_batches, subset
from patchranking.errors import UserError
from patchranking.evaluation.neighbours import voted
from patchranking.extras import import_extra
from patchranking.pretrain.encoder import preprocess_of

__all__ = [
    "Labelled",
    "features_of",
    "knn_accuracy",
    "linear_accuracy",
    "measures_of",
    "measures_on",
    "nothing",
    "read_labelled",
]

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""As in DINO's evaluation."""
_BATCH = 256
_ITERATIONS = 1000


@dataclass(frozen=True)
class Labelled:
    """Labelled images as an encoder takes them.

    Attributes:
        pixels: ``(images, 3, height, width)``.
        labels: Class of each, ``(images,)``.
        skipped: Key -> why an image was left out.
    """

    pixels: Tensor
    labels: Tensor
    skipped: dict[str, str]


def read_labelled(data: ImageData, preprocess: Callable[[Image.Image], Tensor]) -> Labelled:
    """Reads all labelled images of a set.

    Args:
        data: The images; those without a class are left out.
        preprocess: Turns a picture into pixels.

    Raises:
        UserError: If they have no classes, or none can be read.
    """
    if data.labels is None:
        raise UserError(f"'{data.name}/{data.split}' has no classes to evaluate on: give a sub-folder for each class.")
    skipped: dict[str, str] = {}
    known = [index for index, label in enumerate(data.labels) if label >= 0]
    found = list(read_batches(data, preprocess, _BATCH, skipped, known))
    if not found:
        raise UserError(f"None of the {len(data)} images of '{data.name}/{data.split}' can be read and has a class.")
    labels = [data.labels[index] for indices, _ in found for index in indices]
    return Labelled(torch.cat([pixels for _, pixels in found]), torch.tensor(labels), skipped)


@torch.no_grad()
def features_of(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Features of whole, uncompressed images, ``(images, features)``, float32 on the CPU.

    Args:
        encoder: In evaluation mode; gives features ``(batch, features)``.
        pixels: ``(images, 3, height, width)``.
    """
    device = next(encoder.parameters()).device
    return torch.cat([encoder(part.to(device)).float().cpu() for part in pixels.split(_BATCH)])


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> float:
    """Share of images whose nearest neighbours vote for their class, by ``exp(cosine / temperature)``.

    The votes of instance discrimination (Wu et al., 2018), with the constants of DINO's evaluation.

    Args:
        bank: Features of the labelled images ``(images, features)``, of any length.
        bank_labels: Their classes.
        queries: Features of other images.
        labels: Their classes.
        k: Neighbours, at most as many as there are.
        temperature: Of the votes.
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    hits = 0
    for some, own in zip(queries.split(_BATCH), labels.split(_BATCH), strict=True):
        cosines, neighbours = (some @ bank.T).topk(min(k, len(bank)), dim=1)
        hits += int(voted(neighbours, cosines, bank_labels, temperature).eq(own).sum())
    return hits / len(queries)


def linear_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> float:
    """Share of images that a linear classifier on frozen features gets right.

    Multinomial logistic regression on standardised features (scikit-learn, L-BFGS, C = 1), on whole images without
    augmentation: the optimum itself, where the protocols of the papers approach it by stochastic gradients.

    Args:
        bank: Features to train on, ``(images, features)``.
        bank_labels: Their classes.
        queries: Features to test on.
        labels: Their classes.
    """
    linear, scaling = (
        import_extra(f"sklearn.{part}", "A linear probe needs scikit-learn", "pretrain")
        for part in ("linear_model", "preprocessing")
    )
    scaler = scaling.StandardScaler().fit(bank.numpy())
    classifier = linear.LogisticRegression(max_iter=_ITERATIONS)
    classifier.fit(scaler.transform(bank.numpy()), bank_labels.numpy())
    return float(classifier.score(scaler.transform(queries.numpy()), labels.numpy()))


def nothing(_: object) -> dict[str, float | None]:
    """Measures nothing."""
    return {}


def measures_on(
    encoder: nn.Module, data: ImageData, test: ImageData | None, limit: int, seed: int
) -> tuple[Callable[[nn.Module], dict[str, float | None]], dict[str, str]]:
    """A function from an encoder to its accuracy on some pictures by the labels of others, see ``measures_of``.

    Args:
        encoder: Of the kind that will be measured.
        data: The labelled pictures.
        test: Those to measure on, of the same classes; None measures nothing.
        limit: At most so many of ``data``, drawn by seed.
        seed: Random seed.

    Returns:
        The function, and key -> reason of the pictures of ``test`` that cannot be read.

    Raises:
        UserError: If the classes differ, there are none, or no picture can be read.
    """
    if test is None:
        return nothing, {}
    if test.class_names != data.class_names:
        raise UserError(
            f"'{test.name}/{test.split}' has other classes than '{data.name}/{data.split}', so neighbours cannot vote: "
            "give --test pictures of the same classes, or leave it out."
        )
    preprocess = preprocess_of(encoder)
    bank, queries = read_labelled(subset(data, limit, seed), preprocess), read_labelled(test, preprocess)
    return measures_of(bank, queries), queries.skipped


def measures_of(train: Labelled, test: Labelled) -> Callable[[nn.Module], dict[str, float | None]]:
    """A function from an encoder to ``knn`` and ``linear_probe`` in percent; the classes of both sets are the same."""

    def measure(encoder: nn.Module) -> dict[str, float | None]:
        bank, queries = features_of(encoder, train.pixels), features_of(encoder, test.pixels)
        return {
            "knn": 100 * knn_accuracy(bank, train.labels, queries, test.labels),
            "linear_probe": 100 * linear_accuracy(bank, train.labels, queries, test.labels),
        }

    return measure
