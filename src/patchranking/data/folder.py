"""Pictures in folders."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from patchranking.data.base import DATA_HELP, ImageData, distinct_ends, printable, sample
from patchranking.data.images import SUFFIXES, read_image
from patchranking.errors import UserError

__all__ = ["FolderData"]


class FolderData(ImageData):
    """Pictures below one or more folders; sub-folders are classes, their underscores are read as spaces."""

    def __init__(self, folders: list[Path], limit: int | None, seed: int) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"There is no folder '{folder}': give {DATA_HELP}.")
        prefixes = [""] if len(folders) == 1 else [f"{end}/" for end in distinct_ends(folders, shortest=2)]
        files = [
            (prefix + printable(path.relative_to(folder).as_posix()), _class_of(path, folder), path)
            for folder, prefix in zip(folders, prefixes, strict=True)
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.relative_to(folder))
        ]
        if not files:
            suffixes = ", ".join(sorted(SUFFIXES))
            raise UserError(f"There are no pictures in '{', '.join(map(str, folders))}' (looked for {suffixes}).")
        chosen = sample(len(files), limit, seed)
        name = "+".join(folder.resolve().parent.name for folder in folders)
        split = "+".join(dict.fromkeys(folder.resolve().name for folder in folders))
        self._describe(name, split, [key for key, _, _ in files], [kind for _, kind, _ in files], (), chosen)
        self._paths = [files[index][2] for index in chosen]

    def image(self, index: int) -> Image.Image:
        return read_image(self._paths[index])


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _class_of(path: Path, folder: Path) -> str | None:
    parts = path.relative_to(folder).parts
    return printable(parts[0]).replace("_", " ") if len(parts) > 1 else None
