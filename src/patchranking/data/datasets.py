"""Turns a DATA argument into images with keys, labels and class names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from PIL import Image

from patchranking.data.images import read_image
from patchranking.data.templates import templates_for
from patchranking.errors import UserError

__all__ = ["DATA_HELP", "DemoData", "FolderData", "ImageData", "load_data"]

DATA_HELP = "demo[:split], a folder with one sub-folder a class (or flat), or several folders joined by commas"

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}


class ImageData(ABC):
    """An ordered set of images.

    Attributes:
        name: For tables, e.g. ``"flowers"``.
        split: For tables, e.g. ``"val"``.
        keys: One stable name per image; the images' order.
        labels: Class index per image; None when unlabelled.
        class_names: Natural names of the classes, empty when unlabelled.
        templates: Zero-shot prompt templates with one ``{}``.
    """

    name: str
    split: str
    keys: list[str]
    labels: list[int] | None
    class_names: list[str]
    templates: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The RGB picture; raises UnreadableImageError when it cannot be used."""

    def mask(self, index: int) -> np.ndarray | None:
        """Boolean object mask ``(height, width)`` where it is known."""
        return None


class DemoData(ImageData):
    """The generated scenes of ``patchranking.demo.scenes``."""

    def __init__(self, split: str, length: int) -> None:
        from patchranking.demo import scenes

        self._scene = scenes.scene
        self.name, self.split = "demo", split
        self.class_names = list(scenes.CLASSES)
        self.templates = scenes.TEMPLATES
        drawn = [self._scene(split, index) for index in range(length)]
        self.keys = [scene.key for scene in drawn]
        self.labels = [scene.label for scene in drawn]
        self._masks = [scene.mask for scene in drawn]
        self._images = [scene.image for scene in drawn]

    def image(self, index: int) -> Image.Image:
        return self._images[index]

    def mask(self, index: int) -> np.ndarray:
        return self._masks[index]


class FolderData(ImageData):
    """Pictures below one or more folders; sub-folders are classes, their underscores are read as spaces."""

    def __init__(self, folders: list[Path], limit: int | None, seed: int) -> None:
        files: list[tuple[str, str | None, Path]] = []
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"There is no folder '{folder}': give {DATA_HELP}.")
        for folder, prefix in zip(folders, _prefixes(folders), strict=True):
            files += [
                (prefix + _printable(path.relative_to(folder).as_posix()), _class_of(path, folder), path)
                for path in sorted(folder.rglob("*"))
                if path.suffix.lower() in _SUFFIXES and path.is_file() and not _hidden(path.relative_to(folder))
            ]
        if not files:
            raise UserError(f"There are no pictures in '{', '.join(map(str, folders))}' (looked for {_suffix_list()}).")
        classes = {name for _, name, _ in files}
        if limit is not None and limit < len(files):
            chosen = np.random.default_rng(seed).choice(len(files), limit, replace=False)
            files = [files[index] for index in sorted(chosen)]
        self.name = "+".join(folder.resolve().parent.name for folder in folders)
        self.split = "+".join(dict.fromkeys(folder.resolve().name for folder in folders))
        self.keys = [key for key, _, _ in files]
        self._paths = [path for _, _, path in files]
        self.class_names = [] if None in classes else sorted(name for name in classes if name)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.labels = [numbers[name] for _, name, _ in files if name] if numbers else None
        self.templates = templates_for(self.name)

    def image(self, index: int) -> Image.Image:
        return read_image(self._paths[index])


def load_data(data: str, limit: int | None = None, seed: int = 0, default_split: str = "test") -> ImageData:
    """Loads images by their DATA argument.

    Args:
        data: ``demo``, ``demo:train``, a folder, or folders joined by commas.
        limit: At most so many images: a seeded sample of a folder, the first scenes of the demo.
        seed: Seed of the sample.
        default_split: Split of ``demo`` when none is named.

    Raises:
        UserError: If the argument names nothing that exists, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"The limit must be at least 1 image, not {limit}.")
    kind, _, split = data.partition(":")
    if kind == "demo":
        return DemoData(split or default_split, 500 if limit is None else limit)
    whole = Path(data).expanduser()
    parts = [data] if data and whole.is_dir() else data.split(",")
    if not all(parts):
        raise UserError(f"A folder in '{data}' has no name: give {DATA_HELP}.")
    return FolderData([Path(part).expanduser() for part in parts], limit, seed)


def _prefixes(folders: list[Path]) -> list[str]:
    """The shortest ends of the folders' paths, two names or more, that tell them apart; none for a single folder."""
    if len(folders) == 1:
        return [""]
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError(f"The same folder is given twice in '{','.join(map(str, folders))}': give each one once.")
    length = next(n for n in range(2, max(map(len, parts)) + 2) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) + "/" for part in parts]


def _printable(name: str) -> str:
    """Escapes what a file name holds that is not valid text, so that it can be stored and printed."""
    return name.encode("utf-8", "backslashreplace").decode()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _class_of(path: Path, folder: Path) -> str | None:
    parts = path.relative_to(folder).parts
    return _printable(parts[0]).replace("_", " ") if len(parts) > 1 else None


def _suffix_list() -> str:
    return ", ".join(sorted(_SUFFIXES))
