"""Pictures in folders."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from patchranking.data.base import ImageData, distinct_ends, printable, sample
from patchranking.data.classnames import hidden, named, names_beside
from patchranking.data.images import no_picture, read_image, reason
from patchranking.errors import UserError

__all__ = ["FolderData", "folder_prefixes"]

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


class FolderData(ImageData):
    """Pictures below one or more folders; sub-folders are classes, their underscores are read as spaces.

    Links to folders are followed, once each. Where fewer pictures lie beside the classes than in them, those beside
    are left out; otherwise the set is unlabelled. ``classnames.txt`` in a folder or beside it names the classes.
    """

    def __init__(self, folders: list[Path], limit: int | None, seed: int) -> None:
        prefixes = folder_prefixes(folders)
        self.left_out: dict[str, str] = {}
        self.notes: list[str] = []
        files: list[tuple[str, str | None, Path]] = []
        for folder, prefix in zip(folders, prefixes, strict=True):
            files += self._found(folder, prefix)
        if not files:
            raise UserError(f"There are no pictures in '{', '.join(map(str, folders))}'{self._reasons()}.")
        chosen = sample(len(files), limit, seed)
        name = "+".join(folder.resolve().parent.name for folder in folders)
        split = "+".join(dict.fromkeys(folder.resolve().name for folder in folders))
        self._describe(name, split, [key for key, _, _ in files], [kind for _, kind, _ in files], (), chosen)
        self._paths = [files[index][2] for index in chosen]

    def image(self, index: int) -> Image.Image:
        return read_image(self._paths[index])

    def _found(self, folder: Path, prefix: str) -> list[tuple[str, str | None, Path]]:
        """Key, class and path of the pictures below a folder; notes the files that are left out."""
        paths, why = _walk(folder)
        kinds = {path: path.parts[0] if len(path.parts) > 1 else None for path in paths}
        loose = [path for path, kind in kinds.items() if kind is None]
        if loose and 2 * len(loose) < len(paths):
            why |= dict.fromkeys(loose, "a picture beside the folders of the classes")
            paths = [path for path in paths if kinds[path] is not None]
        elif loose and len(loose) < len(paths):
            self.notes.append(f"There are no labels: {len(loose)} pictures lie beside the sub-folders of '{folder}'.")
        self.left_out |= {prefix + printable(path.as_posix()): text for path, text in sorted(why.items())}
        classes = sorted({kind for path in paths if (kind := kinds[path]) is not None})
        if classes and {kind.lower() for kind in classes} <= _SPLITS:
            one = classes[0]
            self.notes.append(
                f"The classes {', '.join(classes)} look like splits: name the folder of one, such as '{folder / one}'."
            )
        names, note = named(classes, names_beside(folder.resolve()))
        self.notes += [printable(note)] if note else []
        return [
            (prefix + printable(path.as_posix()), kind and printable(names[kind]).replace("_", " "), folder / path)
            for path in paths
            for kind in [kinds[path]]
        ]

    def _reasons(self) -> str:
        """Why the first files were left out, for a sentence."""
        examples = [f"'{name}' is left out: {why}" for name, why in list(self.left_out.items())[:3]]
        return f" ({'; '.join(examples)})" if examples else ""


def folder_prefixes(folders: list[Path]) -> list[str]:
    """What keys of the pictures in each folder begin with: the end of its path, nothing where it is the only one."""
    return [""] if len(folders) == 1 else [f"{end}/" for end in distinct_ends(folders, shortest=2)]


def _walk(root: Path) -> tuple[list[Path], dict[Path, str]]:
    """Pictures below a folder, sorted, and what is left out with its reason, all relative to it.

    Every folder is entered once, links to folders after the others: so links may form circles.
    """
    found: list[Path] = []
    left_out: dict[Path, str] = {}
    entered: dict[tuple[int, int], Path] = {}
    folders, links = [Path()], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = (root / folder).stat()
            if (first := entered.setdefault((status.st_dev, status.st_ino), folder)) is not folder:
                left_out[folder] = f"the same folder as '{printable(first.as_posix())}'"
                continue
            entries = sorted(os.listdir(root / folder))
        except OSError as error:
            left_out[folder] = reason(error)
            continue
        for name in entries:
            path = folder / name
            if why := hidden(name):
                left_out[path] = why
            elif (root / path).is_dir():
                (links if (root / path).is_symlink() else folders).append(path)
            elif why := no_picture(root / path):
                left_out[path] = why
            else:
                found.append(path)
    return sorted(found), left_out
