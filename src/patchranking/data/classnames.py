"""Names of classes: read beside the pictures, matched with folders, and told from numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

__all__ = ["are_ids", "distinct", "hidden", "lines_beside", "named", "names_beside"]

_SYSTEM = {
    *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "lost+found", "$recycle.bin"),
    *("system volume information", "thumbs.db", "desktop.ini", "__pycache__"),
}
_ID = re.compile(r"n\d{8}|(class)?[-_ ]?\d+", re.IGNORECASE)


def hidden(name: str) -> str:
    """Why a file or folder of this name is none of the user's pictures; empty where it may be."""
    if name.startswith("."):
        return "hidden"
    return "made by the system" if name.lower() in _SYSTEM else ""


def are_ids(names: Sequence[str]) -> bool:
    """Whether names of classes are numbers for the most part, like n01440764 and 0001, and no words."""
    return 2 * sum(_ID.fullmatch(name) is not None for name in names) > len(names)


def lines_beside(folder: Path, name: str) -> list[str]:
    """The lines of a text file in a folder, or one folder above; none where there is no such file."""
    for path in (folder / name, folder.parent / name):
        if path.is_file():
            return [line.strip() for line in path.read_text("utf-8-sig", "replace").splitlines() if line.strip()]
    return []


def names_beside(folder: Path) -> list[str]:
    """The lines of ``classnames.txt`` in a folder, or one folder above."""
    return lines_beside(folder, "classnames.txt")


def named(classes: Sequence[str], lines: Sequence[str]) -> tuple[dict[str, str], str]:
    """Names classes by the lines of ``classnames.txt``.

    A line is ``ID NAME``, as in ``n01440764 tench``, or a name alone: then the names are in the order of the classes.
    Names that come again are numbered by their lines, so that folders which share the file agree on them.

    Args:
        classes: What the classes are called so far, sorted.
        lines: The lines; none where there is no such file.

    Returns:
        Name of every class, and a sentence on what was assumed or left aside; empty where there is nothing to say.
    """
    own = {kind: kind for kind in classes}
    pairs = [[*re.split(r"[\s,;:=]+", line, maxsplit=1), ""][:2] for line in lines]
    names = {kind: name for kind, text in pairs if (name := text.partition(",")[0].strip())}
    listed = dict(zip(names, distinct(list(names.values())), strict=True))
    if not classes or not lines or set(map(_plain, classes)) <= set(map(_plain, lines)):
        return own, ""
    if listed.keys() >= {*classes}:
        return {kind: listed[kind] for kind in classes}, ""
    if are_ids(classes) and len(lines) == len(classes) and not listed.keys() & {*classes}:
        first = f"'{classes[0]}' is '{lines[0]}'"
        return dict(
            zip(classes, distinct(lines), strict=True)
        ), f"classnames.txt names the classes in their order: {first}."
    return own, (
        f"classnames.txt is left aside, for it does not name '{next(k for k in classes if k not in listed)}': write "
        "lines such as 'n01440764 tench'."
    )


def distinct(names: Sequence[str]) -> list[str]:
    """Tells names that come again apart by a number, for names are keys: the second is called ``"NAME (2)"``."""
    seen, taken, found = Counter[str](), set(names), list[str]()
    for name in names:
        seen[name] += 1
        own = name
        while seen[name] > 1 and own in taken:
            own = f"{name} ({seen[name]})"
            seen[name] += own in taken
        taken.add(own)
        found.append(own)
    return found


def _plain(name: str) -> str:
    return name.replace("_", " ").lower()
