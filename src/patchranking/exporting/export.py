"""Writes a model, pruned or dense, as files that run without this package, once they are found to agree with it."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchranking.data import ImageData
from patchranking.errors import UserError
from patchranking.exporting.backends import BACKENDS, Backend, Lowering
from patchranking.exporting.check import Agreement, agreement, pictures
from patchranking.exporting.folder import Exported, foreign
from patchranking.exporting.modules import ImageSide, Side, TextSide, traced
from patchranking.exporting.quality import pictured, processor, quality
from patchranking.exporting.quantise import unit_features
from patchranking.exporting.readme import readme
from patchranking.exporting.settings import ExportSettings
from patchranking.exporting.tokenizer import portable
from patchranking.files import make_folder, replacing_folder
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs
from patchranking.towers import TextTower, as_tower
from patchranking.towers.copies import copied
from patchranking.towers.identity import BaseModel
from patchranking.towers.load import LoadedModel
from patchranking.towers.preprocessing import Preprocessing
from patchranking.version import __version__

__all__ = ["export"]

_SAME_PIXELS = 0.03
"""Of their norm; resizing whole levels of 8 bits in another library is 0.01."""
_LIBRARIES = (
    "torch",
    "open_clip_torch",
    "transformers",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
)


def export(
    model: LoadedModel,
    out: Path,
    pruner: Pruner | None = None,
    settings: ExportSettings = ExportSettings(),  # noqa: B008
    images: ImageData | None = None,
) -> Exported:
    """Writes a model as files that run without this package; a folder is there when all of them have been checked.

    The image encoder, with predictors, corrections and visual tokens, is one file, and so is the text encoder where
    there is one. They take batches of any size.

    Args:
        model: The dense model, on the CPU.
        out: The folder; an export that is there gives way, and with anything else nothing is written.
        pruner: Fitted to the model, at the keep rate that is wanted; none for the dense model.
        settings: What to write.
        images: Of the kind that will be encoded; bf16 and int8 are measured on them.

    Returns:
        What ``config.json`` says.

    Raises:
        UserError: If something to write with is missing, the pruner is another model's, the folder holds something
            else, the layout cannot hold the model, the files do not agree with PyTorch, bf16 or int8 is too far from
            float32, or images are missing for them.
    """
    backend, tower, folder = BACKENDS[settings.format], model.tower, Path(out).expanduser().absolute()
    backend.check(settings.precision)
    if settings.precision != "fp32" and images is None:
        raise UserError(f"{settings.precision} is measured on images before it is written: give some with --images.")
    tower.check_dense()
    if pruner is not None:
        pruner.base.check(tower)
        pruner.fitted.check(tower)
    if (other := foreign(folder)) is not None:
        raise UserError(f"'{other}' is no part of an exported model: choose another --out, or move it away.")
    about, classes = _about(model, pruner, settings)
    preprocessing = _checked_preprocessing(model, settings.seed)
    tokenizer = None if model.text is None else portable(model.text)
    if settings.layout == "immich" and (tokenizer is None or model.text is None):
        raise UserError(
            f"Immich needs a text encoder whose tokenizer the library tokenizers can run, and '{model.name}' has none: "
            "leave --layout immich out."
        )
    make_folder(folder.parent)
    with replacing_folder(folder) as partial, torch.random.fork_rng(devices=[]):
        side = ImageSide(tower, pruner, about.normalised)
        pixels = torch.stack([torch.from_numpy(preprocessing(picture)) for picture in pictures(settings.seed)])
        found = _written(backend, side, pixels, partial / about.image)
        check: dict[str, float] = {"image_cosine": found.cosine, "same_patches": found.same_patches}
        if settings.precision != "fp32" and images is not None:
            check |= _lowered(backend, model, pruner, settings, images, partial / about.image)
        if model.text is not None:
            ids = _ids(model.text, len(pixels), settings.seed)
            check["text_cosine"] = _written(backend, TextSide(model.text), ids, partial / about.text).cosine
        if tokenizer is not None:
            tokenizer.save(str(partial / about.tokenizer))
        if classes is not None:
            np.save(partial / about.classes, classes.numpy(), allow_pickle=False)
        (partial / about.preprocessing).write_text(json.dumps(preprocessing.to_dict(), indent=2) + "\n")
        (partial / "README.md").write_text(readme(about, preprocessing, model.text is not None), encoding="utf-8")
        more = _immich(partial / about.tokenizer, about, tokenizer) if settings.layout == "immich" else {}
        replace(about, check=check).write(partial, more)
    return Exported.read(folder)


def _about(model: LoadedModel, pruner: Pruner | None, settings: ExportSettings) -> tuple[Exported, Tensor | None]:
    """What config.json says before anything is checked, and the features of classes under tuned text tokens."""
    tower, features = model.tower, model.tower.feature_size
    names, classes = settings.classes, None
    if names and (pruner is None or pruner.tuned not in ("text", "both")):
        raise UserError("Class features are written where text tokens were tuned: leave --classes out.")
    if pruner is not None and pruner.prompts is not None and pruner.tuned != "visual":
        names = names or pruner.prompts.class_names
        classes = pruner.text_features(names, model.text) if names else None
    share, schedule = 1.0, None
    if pruner is not None:
        schedule = pruner.schedule
        macs = analytic_macs(tower, features, schedule, pruner.visual_tokens)
        share = macs / analytic_macs(tower, features, schedule.at(1.0))
    about = Exported(
        model=model.name,
        base_model=asdict(BaseModel.of(tower, model.name)),
        backend=settings.format,
        layout=settings.layout,
        feature_size=features,
        normalised=settings.layout == "immich",
        logit_scale=model.logit_scale,
        keep=1.0 if pruner is None else pruner.keep,
        schedule=None if schedule is None else schedule.to_dict(),
        pruner=None if pruner is None else pruner.fingerprint,
        tuned="none" if pruner is None else pruner.tuned,
        macs_share=share,
        context_length=None if model.text is None else model.text.context_length,
        class_names=list(names) if classes is not None else [],
        precision=settings.precision,
        processor=processor(),
        versions=_versions(),
    )
    return about, classes


def _checked_preprocessing(model: LoadedModel, seed: int) -> Preprocessing:
    """How pictures become pixels, by numbers, once that is found to be what the library does."""
    difference = 1.0
    if model.preprocessing is not None:
        found = [(torch.from_numpy(model.preprocessing(one)), model.preprocess(one)) for one in pictures(seed)]
        same = all(mine.shape == its.shape for mine, its in found)
        difference = max(float((a - b).norm() / b.norm()) for a, b in found) if same else 1.0
    if model.preprocessing is None or difference > _SAME_PIXELS:
        raise UserError(
            f"The preprocessing of '{model.name}' cannot be written as numbers, so nothing was exported: pictures have "
            "to be resized by the short side and cut, or squeezed into shape."
        )
    return model.preprocessing


def _written(backend: Backend, side: Side, inputs: Tensor, path: Path) -> Agreement:
    """Writes one side of a model to a file, and refuses it where it does not agree with PyTorch."""
    path.parent.mkdir(exist_ok=True)
    backend.write(traced(side, inputs[:2]), side.names, path)
    found = agreement(backend.load(path), side, inputs)
    found.check(f"The {side.names[0]} encoder")
    return found


def _lowered(
    backend: Backend, model: LoadedModel, pruner: Pruner | None, settings: ExportSettings, images: ImageData, path: Path
) -> dict[str, float]:
    """Lowers the precision of the image encoder's file, and says how far from float32 that is on other images."""

    def side(dtype: torch.dtype) -> ImageSide:
        tower = as_tower(copied(model.model, dtype))
        own = None if pruner is None else copy.deepcopy(pruner).to(dtype)
        return ImageSide(tower, own, settings.layout == "immich")

    calibration, held = pictured(model, images, settings.calibration, settings.seed)
    reference = unit_features(backend.load(path), held)
    widest = 0 if pruner is None else max(pruner.predictor(int(block)).widest for block in pruner.predictors)
    backend.lower(path, Lowering(settings.precision, side, calibration, widest))
    found = quality(unit_features(backend.load(path, settings.precision), held), reference)
    if not settings.force:
        found.check(settings.precision)
    return asdict(found)


def _ids(text: TextTower, number: int, seed: int) -> Tensor:
    """Ids of as many texts, int32 ``(number, context length)``."""
    words = np.random.default_rng(seed).choice(["a", "photo", "of", "the", "red", "cat", "car", "tree"], (number, 6))
    ids = text.tokenize([" ".join(some) + "." for some in words]).cpu()
    last = ids[:, -1:].expand(-1, text.context_length - ids.shape[1])
    return torch.cat([ids, last], 1).int()


def _immich(tokenizer_file: Path, about: Exported, tokenizer: Any) -> dict[str, Any]:
    """Writes the tokenizer's configuration, and returns what Immich looks for in config.json."""
    about_tokenizer = {"pad_token": tokenizer.padding["pad_token"]}
    tokenizer_file.with_name("tokenizer_config.json").write_text(json.dumps(about_tokenizer, indent=2) + "\n")
    size = about.base_model["image_size"][0]
    text = {"context_length": about.context_length, "vocab_size": tokenizer.get_vocab_size()}
    return {"embed_dim": about.feature_size, "vision_cfg": {"image_size": size}, "text_cfg": text}


def _versions() -> dict[str, str]:
    found = {"patchranking": __version__}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
