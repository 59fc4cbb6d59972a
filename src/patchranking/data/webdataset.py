"""Pictures in WebDataset shards: tar files in which the files of one sample share their name up to the first dot."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path, PurePosixPath
from posixpath import splitext
from typing import BinaryIO

import numpy as np
from PIL import Image

from patchranking.data.base import ImageData, distinct_ends, printable, sample
from patchranking.data.classnames import hidden, lines_beside, names_beside
from patchranking.data.images import HEIF_SUFFIXES, UnreadableImageError, read_image, reason, suffixes
from patchranking.errors import UserError

__all__ = ["WebDatasetData", "read_part", "scan", "shard_paths"]

_DAMAGE = (OSError, tarfile.TarError, ValueError, MemoryError, OverflowError)


@dataclass
class _Sample:
    """What a shard says about a sample: offset and size of its picture, its class, why it is lost."""

    place: tuple[int, int] | None = None
    number: int | None = None
    lost: str = ""


class WebDatasetData(ImageData):
    """Samples with a picture; only their keys, classes and places in the shards are kept in memory.

    A picture whose name has more dots, as ``photo.1.jpg``, is a sample of its own, with the class in ``photo.1.cls`` or
    else ``photo.cls``, unless ``photo.jpg`` is there and ``photo.1.cls`` is not. What has no picture is left out.

    Classes are the numbers in ``.cls`` files. ``classnames.txt`` and ``zeroshot_classification_templates.txt``, beside
    the shards or one folder above as in CLIP benchmark, hold one name or prompt a line. Where a shard breaks off or is
    damaged, its last sample counts as an image that cannot be read, for it may lack files.

    Args:
        shards: Path of a tar file; ``{000..003}``, ``{a,b}`` and wildcards stand for several.
        limit: Maximum number of images.
        seed: Seed of their sample.

    Raises:
        UserError: If a shard is missing or no tar file, there are no pictures, or a class has no name.
    """

    def __init__(self, shards: str, limit: int | None, seed: int) -> None:
        self._shards = shard_paths(shards)
        keys: list[str] = []
        classes: list[int | None] = []
        places: list[tuple[int, int, int]] = []
        self._lost: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        for shard, end in enumerate(distinct_ends(self._shards, shortest=1)):
            samples, left_out = scan(self._shards[shard])
            self.left_out |= {printable(f"{end.removesuffix('.tar')}/{name}"): why for name, why in left_out.items()}
            for name, found in samples.items():
                keys.append(printable(f"{end.removesuffix('.tar')}/{name}"))
                classes.append(-1 if found.lost else found.number)
                places.append((shard, *(found.place or (0, 0))))
                if found.lost:
                    self._lost[keys[-1]] = found.lost
        if not keys:
            raise UserError(f"There are no pictures in 'wds:{shards}': a sample needs one, such as 000.jpg.")
        chosen = sample(len(keys), limit, seed)
        folders = list(dict.fromkeys(Path(os.path.realpath(path)).parent for path in self._shards))
        name = "+".join(dict.fromkeys(folder.parent.name for folder in folders))
        split = "+".join(dict.fromkeys(folder.name for folder in folders))
        self._describe(name, split, keys, classes, names_beside(folders[0]), chosen)
        templates = lines_beside(folders[0], "zeroshot_classification_templates.txt")
        self.templates = tuple(line.replace("{c}", "{}") for line in templates) or self.templates
        self._places = np.array(places)[chosen]

    def image(self, index: int) -> Image.Image:
        if lost := self._lost.get(self.keys[index]):
            raise UnreadableImageError(lost)
        shard, offset, size = self._places[index].tolist()
        return read_image(read_part(self._shards[shard], offset, size))


def read_part(file: Path, offset: int, size: int) -> bytes:
    """Some bytes of a file; UnreadableImageError where they cannot be read."""
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(size)
    except (OSError, MemoryError) as error:
        raise UnreadableImageError(reason(error)) from error


def shard_paths(shards: str) -> list[Path]:
    """Paths of tar files, braces and wildcards spelt out; UserError where there is none."""
    paths: list[Path] = []
    for pattern in _without_braces(str(Path(os.path.expanduser(shards)))):
        found = [pattern] if Path(pattern).exists() else sorted(glob(pattern))
        if not found:
            raise UserError(f"There is no shard '{pattern}': give tar files, as in wds:data/{{000..003}}.tar.")
        paths += map(Path, found)
    if not paths:
        raise UserError(f"'wds:{shards}' names no shard: give the numbers in braces from the first to the last.")
    return paths


def _without_braces(pattern: str) -> Iterator[str]:
    """Spells out ``{000..003}`` and ``{a,b}`` as a shell does, one after the other."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if braces is None:
        yield pattern
        return
    first, last, words = braces.groups()
    numbers = range(int(first), int(last) + 1) if first else ()
    for option in (f"{number:0{len(first)}}" for number in numbers) if first else words.split(","):
        for after in _without_braces(pattern[braces.end() :]):
            yield pattern[: braces.start()] + option + after


def scan(shard: Path) -> tuple[dict[str, _Sample], dict[str, str]]:
    """Finds the samples of a shard by its headers, and what is left out with its reason."""
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return _pictures(*_samples(file, tar))
    except _DAMAGE as error:
        raise UserError(f"'{shard}' cannot be read as an uncompressed tar file: {reason(error)}.") from error


def _samples(file: BinaryIO, tar: tarfile.TarFile) -> tuple[dict[str, _Sample], dict[str, str]]:
    """Samples by their whole names, with or without a picture."""
    samples: dict[str, _Sample] = {}
    left_out: dict[str, str] = {}
    current = _Sample()
    try:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
            path = member.name.removeprefix("./")
            if member.isdir():
                continue
            if why := next(filter(None, map(hidden, PurePosixPath(path).parts)), ""):
                left_out[path] = why
                continue
            if not member.isfile() or member.issparse():
                left_out[path] = "no regular file"
                continue
            name, suffix = splitext(path)
            if suffix.lower() in suffixes() | HEIF_SUFFIXES:
                current = samples.setdefault(name, _Sample())
                if current.place:
                    left_out[path] = "a second picture of its sample"
                current.place = current.place or (member.offset_data, member.size)
            elif suffix == ".cls":
                current = samples.setdefault(name, _Sample())
                file.seek(member.offset_data)
                text = file.read(min(member.size, tarfile.BLOCKSIZE)).strip()
                current.number = int(text) if text.isdigit() else None
            else:
                current = samples.setdefault(name if name in samples else _first(path), _Sample())
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("neither a file nor the end mark follows")
    except _DAMAGE as error:
        if not samples:
            raise
        current.lost = f"the shard is damaged in or after this sample, near byte {tar.offset}: {reason(error)}"
    return samples, left_out


def _pictures(samples: dict[str, _Sample], left_out: dict[str, str]) -> tuple[dict[str, _Sample], dict[str, str]]:
    """The samples that have a picture or are lost, with the classes of those that have more dots in their names."""
    found: dict[str, _Sample] = {}
    dotted = {_first(name) for name, own in samples.items() if own.place and _first(name) != name}
    for name, own in samples.items():
        whole = samples.get(_first(name), own)
        if own.place and own.number is None and whole is not own and whole.place:
            left_out[name] = f"a second picture of the sample '{_first(name)}'"
            continue
        if own.number is None:
            own.number = whole.number
        if own.place or own.lost:
            found[name] = own
        elif name not in dotted:
            left_out[name] = "no picture in the sample"
    return found, left_out


def _first(path: str) -> str:
    """A path up to the first dot of its file's name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]
