"""A CLIP made of a trained image encoder: pictures and texts find each other, on few tokens first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from patchranking.checkpoint import digest
from patchranking.data import ImageData
from patchranking.errors import UserError
from patchranking.extras import import_extra
from patchranking.files import make_folder
from patchranking.pretrain.budget import budget_of
from patchranking.pretrain.clip import ClipSettings, make_clip, save_clip
from patchranking.pretrain.compression import Compression, encode
from patchranking.pretrain.cost import forward_share
from patchranking.pretrain.encoder import load_encoder, normalisation_of, preprocess_of
from patchranking.pretrain.loop import Measures, TrainSettings, fabric_for, identity_of, train
from patchranking.pretrain.objective import Normalisation, Objective, Step, in_float32
from patchranking.pretrain.pictures import Shuffled, Views, read_pictures
from patchranking.pretrain.probe import features_of, nothing, read_labelled
from patchranking.pretrain.progress import ProgressFolder
from patchranking.pretrain.report import MODEL, PretrainReport
from patchranking.pretrain.search import named_schedule
from patchranking.seeding import nth_seed, seeded
from patchranking.towers import TextTower, as_text_tower
from patchranking.towers.zero_shot import class_features

__all__ = ["ImageText", "image_text", "matches"]

_LARGEST = 100.0
"""Of the factor on cosines, as in CLIP."""


def matches(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """The loss of CLIP: cross-entropy of finding each image's text and each text's image in a batch.

    Args:
        images: Unit features ``(batch, features)``.
        texts: Of the texts of these images, in the same order.
        same: Which texts are equal, boolean ``(batch, batch)``: an image that has the text of another finds either.
        scale: Factor on the cosines.
    """
    logits, target = scale * images @ texts.T, same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ImageText(Objective):
    """Contrastive learning of images and texts (Radford et al., 2021, arXiv 2103.00020), the images compressed.

    Args:
        model: A CLIP from ``make_clip``; it is the encoder of the loop.
        min_scale: Least share of the picture that a view shows.
    """

    betas, weight_decay = (0.9, 0.98), 0.2

    def __init__(self, model: nn.Module, min_scale: float = 0.9) -> None:
        super().__init__(model)
        self._min_scale = min_scale

    def views(self, normalisation: Normalisation) -> Callable[[Image.Image], Sequence[Tensor]]:
        size, scale = self.tower.image_size[0], (self._min_scale, 1.0)
        transforms = import_extra("torchvision.transforms", "A CLIP needs torchvision", "pretrain")
        steps = [
            transforms.RandomResizedCrop(size, scale, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(normalisation.mean, normalisation.std),
        ]
        seen = transforms.Compose(steps)
        return lambda picture: [seen(picture)]

    def forward(self, views: Sequence[Tensor], step: Step) -> Tensor:
        pixels, ids = views
        model: Any = self.encoder
        images, texts = encode(self.tower, pixels, step.compression, step.noise), model.encode_text(ids)
        with in_float32(pixels.device):
            images, texts = (F.normalize(found.float(), dim=-1) for found in (images, texts))
            same = (ids[:, None] == ids).all(-1)
            return matches(images, texts, same, model.logit_scale.exp().clamp(max=_LARGEST))

    def passes(self, compression: Compression) -> float:
        """Of the image encoder; the text encoder is not in it, and costs the same under every compression."""
        return forward_share(self.tower, compression)


class _WithTexts(Dataset[list[Tensor]]):
    """Views of pictures, each with the tokens of one of its texts, drawn anew every time."""

    def __init__(self, views: Views, texts: Sequence[Tensor], seed: int) -> None:
        self._seen, self._texts, self._seed = views, texts, seed

    def __len__(self) -> int:
        return len(self._seen)

    def __getitem__(self, item: int) -> list[Tensor]:
        texts = self._texts[self._seen.place_of(item)]
        return [*self._seen[item], texts[nth_seed(self._seed, item) % len(texts)]]


def image_text(
    tower: str | Path,
    data: ImageData,
    test: ImageData | None,
    out: str | Path,
    settings: ClipSettings = ClipSettings(),  # noqa: B008
    training: TrainSettings | None = None,
    schedule: str = "default",
    device: str = "cpu",
) -> PretrainReport:
    """Makes a CLIP of a trained image encoder and saves it for open_clip; a killed training goes on from ``out``.

    Texts are the pictures' captions or, where they have none, their classes in the templates of their data set. Both
    encoders are trained, the image encoder under a schedule of compression and counted as in ``contrastive``.

    Args:
        tower: Folder of the trained encoder, such as ``runs/pretrain/model``.
        data: Pictures to train on, with captions or classes.
        test: Pictures with classes, whose zero-shot accuracy is measured along the way; none is when omitted.
        out: Folder for the progress and the CLIP, which is in its folder ``model``.
        settings: The text encoder, and how pictures are seen.
        training: How; by the defaults when omitted.
        schedule: ``default``, ``none``, ``two-phase`` or a YAML file.
        device: cpu, cuda, cuda:1, mps, ...

    Returns:
        What was done; rows of its progress have ``zero_shot`` in percent.

    Raises:
        UserError: If the encoder, the pictures, their texts or the schedule do not fit, the folder holds another
            training, or there are several processes.
        MissingExtraError: If open_clip, timm, lightly, lightning-fabric or torchvision is not installed.
    """
    training, folder = training or TrainSettings(), make_folder(out)
    fabric = fabric_for(device, training)
    if fabric.world_size > 1:
        raise UserError("A CLIP is trained by one process: start it without torchrun.")
    encoder = load_encoder(tower)
    with seeded(training.seed):
        model, configuration = make_clip(encoder, settings)
    objective = ImageText(model, settings.min_scale)
    open_clip = import_extra("open_clip", "A CLIP needs open_clip", "open-clip")
    text = as_text_tower(model, open_clip.SimpleTokenizer(context_length=settings.context))
    chosen = named_schedule(schedule, objective)
    pictures = read_pictures(data, objective.tower.image_size[0], training.in_memory)
    texts = _texts_of(data)
    tokens = [text.tokenize(texts[index]) for index in pictures.indices]
    measures, skipped = (nothing, {}) if test is None else _zero_shot(test, text, preprocess_of(encoder))
    budget = budget_of(objective, training.epochs, len(pictures))
    of = identity_of(settings, training, pictures)
    of |= {"tower": digest(encoder.state_dict()), "texts": digest([one for own in texts for one in own])}
    of["schedule"] = [asdict(stage) for stage in chosen.stages]
    kept = ProgressFolder(folder / "progress", of)
    normalisation = normalisation_of(encoder)
    seen = objective.views(normalisation)
    views = _WithTexts(
        Views(pictures, Shuffled(len(pictures), training.seed), seen, training.seed), tokens, training.seed
    )
    progress = train(objective, views, chosen, budget, training, kept, fabric, measures)
    save_clip(model, configuration, normalisation, folder / MODEL)
    return PretrainReport(len(pictures), pictures.skipped | skipped, budget, 0.0, chosen, progress)


def _texts_of(data: ImageData) -> list[list[str]]:
    """The texts of every picture."""
    if data.captions is not None:
        return data.captions
    if data.labels is None:
        raise UserError(
            f"'{data.name}/{data.split}' has neither captions nor classes for a CLIP to learn from: give a list of "
            "captions, or a sub-folder for each class."
        )
    return [[template.format(data.class_names[label]) for template in data.templates] for label in data.labels]


def _zero_shot(
    test: ImageData, text: TextTower, preprocess: Callable[[Image.Image], Tensor]
) -> tuple[Measures, dict[str, str]]:
    """A function from a CLIP to its zero-shot accuracy in percent, and the pictures of ``test`` that cannot be read."""
    queries = read_labelled(test, preprocess)

    def measure(model: nn.Module) -> dict[str, float | None]:
        visual: Any = model.visual
        classes = class_features(text, test.class_names, test.templates).cpu()
        answers = (features_of(visual, queries.pixels) @ classes.T).argmax(1)
        return {"zero_shot": 100 * answers.eq(queries.labels).float().mean().item()}

    return measure, queries.skipped
