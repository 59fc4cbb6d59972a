r"""Hands damaged and hostile files to everything that reads files; ends with the smallest one that breaks a promise.

    python benchmarks/fuzz.py --seconds 600 --seed 1

The promises: an error is a ``UserError`` of one sentence, every picture is used or accounted for, and nothing is
written but to the output folder. ``tests/test_fuzz.py`` tries a few of the files.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import torch
from common import main
from hostile import ARTEFACTS, FOLDER, LISTS, PICTURES, SHARD, artefacts, damaged, load_demo, mutated, picture, shard
from hypothesis import strategies as st

from patchranking import ImageData, Pruner, UserError, load_data, rank
from patchranking.data import read_batches
from patchranking.data.base import printable
from patchranking.data.images import UnreadableImageError, read_image
from patchranking.ranking.store import golden_by_index


def fuzz(examples: int = 200, seconds: float = 60.0, seed: int = 0) -> None:
    """Tries every kind of file in turn until the time is over.

    Args:
        examples: Files of a kind in a round.
        seconds: Time in which new rounds begin.
        seed: Random seed of the first round.
    """
    end, rounds = time.monotonic() + seconds, 0
    while not rounds or time.monotonic() < end:
        for kind in KINDS:
            attempt(kind, examples // RARE.get(kind, 1), seed + rounds)
        rounds += 1
        print(
            f"round {rounds}, seed {seed + rounds - 1}: {examples} files of each kind, every promise kept", flush=True
        )


def hold_picture(content: bytes) -> None:
    """A picture is read as RGB, or there is a reason why not."""
    try:
        assert read_image(content).mode == "RGB"
    except UnreadableImageError as error:
        one_line(str(error))


def hold_folder(entries: list[tuple[str, bytes | str]]) -> None:
    """Every file is an image or left out, links and all; joined folders are read, too."""
    with sandbox() as where:
        fill(where, entries)
        files = [path.relative_to(where) for path in where.rglob("*") if not path.is_dir()]
        with promised(where):
            data = load_data(str(where))
            known = {*data.keys, *data.left_out}
            for file in files:
                assert known & {printable(path.as_posix()) for path in (file, *file.parents[:-1])}, file
            read(data)
        with promised(where):
            read(load_data(f"{where / 'cat'},{where / 'dog'}"))


def hold_shard(own: tuple[str, bytes]) -> None:
    """Every picture of a shard is an image or left out, also where the shard is damaged."""
    with sandbox() as where:
        put(where / own[0], own[1])
        with promised(where):
            read(load_data(f"wds:{where / own[0]}"))


def hold_members(members: list[tuple[str, bytes, bytes]]) -> None:
    """Every picture of a sound shard is an image or left out."""
    with sandbox() as where:
        put(where / "s.tar", shard(members))
        with promised(where):
            data = load_data(f"wds:{where / 's.tar'}")
            known = {*data.keys, *data.left_out}
            for name in (name.removeprefix("./") for name, kind, _ in members if kind != tarfile.DIRTYPE):
                path = f"s/{printable(name)}"
                used = {path, path.removesuffix(".png"), path.partition(".")[0]} & known
                assert used or not name.endswith(".png"), path


def hold_artefact(own: tuple[str, bytes | None]) -> None:
    """A pruner with a damaged file is refused, or prunes; damaged rankings are refused, or read."""
    folder, name = own[0].split("/")
    with sandbox() as where:
        shutil.copytree(artefacts() / folder, where, dirs_exist_ok=True)
        (where / name).unlink()
        if own[1] is not None:
            put(where / name, own[1])
        with promised(where):
            if folder == "rankings":
                assert {len(row) for row in golden_by_index(where, load_data("demo", 2).keys).values()} <= {144}
                return
            tower = load_demo().tower
            with torch.inference_mode(), Pruner.from_pretrained(where).attached(tower):
                assert tower(torch.zeros(1, 3, *tower.image_size)).shape == (1, tower.feature_size)


def hold_rank(entries: list[tuple[str, bytes | str]]) -> None:
    """Rankings go into their folder alone, and their manifest accounts for every image."""
    with sandbox() as where:
        fill(where, entries)
        before = listing(where)
        out = where.parent / "out"
        try:
            totals = rank(load_demo(), data := load_data(str(where)), out)["totals"]
        except UserError as error:
            one_line(str(error))
        else:
            assert totals["in"] == len(data) == totals["ranked"] + totals["skipped"]
            assert totals["left_out"] == len(data.left_out)
        assert listing(where) == before
        assert {path.name for path in where.parent.iterdir()} <= {"in", "out"}


def hold_list(file: tuple[str, bytes]) -> None:
    """A list of captions or a file of splits is read or refused."""
    with sandbox() as where:
        put(where / "a.png", picture())
        put(where / "b.png", b"broken")
        put(where / file[0], file[1])
        with promised(where):
            read(load_data(str(where / file[0])))


@contextmanager
def sandbox() -> Iterator[Path]:
    """A folder with nothing beside it."""
    with tempfile.TemporaryDirectory() as folder:
        (where := Path(folder) / "in").mkdir()
        yield where


@contextmanager
def promised(where: Path) -> Iterator[None]:
    """Errors are one sentence, and nothing in a folder or beside it is made, changed or lost."""
    before = listing(where.parent)
    try:
        yield
    except UserError as error:
        one_line(str(error))
    assert listing(where.parent) == before


def one_line(said: str) -> None:
    """A sentence is one line, and says something."""
    assert said
    assert "\n" not in said, said


def listing(where: Path) -> list[tuple[str, int, int]]:
    """Names, modes and times of what lies below a folder."""
    found = [Path(folder) / name for folder, folders, files in os.walk(where) for name in (*folders, *files)]
    return sorted((str(path), (own := path.lstat()).st_mode, own.st_mtime_ns) for path in found)


def fill(where: Path, entries: list[tuple[str, bytes | str]]) -> None:
    """Makes what can be made of some entries in a folder, and nothing beside it, whatever the links lead to."""
    for name, content in entries:
        with suppress(OSError, RuntimeError):  # Python 3.11 and 3.12 raise the latter for links that go in a circle
            if (where / name).parent.resolve().is_relative_to(where.resolve()):
                put(where / name, content)


def put(path: Path, content: bytes | str) -> None:
    """Makes a file, a folder, a pipe or a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        with path.open("xb") as file:
            file.write(content)
    elif content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(content.removeprefix("link "))


def read(data: ImageData) -> None:
    """Reads all images: in = out + skipped; keys and names of classes are unique."""
    assert len(set(data.keys)) == len(data.keys)
    assert len(set(data.class_names)) == len(data.class_names)
    assert data.labels is None or [-1 <= label < len(data.class_names) for label in data.labels] == [True] * len(data)
    skipped: dict[str, str] = {}
    used = [i for indices, _ in read_batches(data, lambda _: torch.zeros(1), 4, skipped) for i in indices]
    assert len(used) + len(skipped) == len(data)
    for said in (*skipped.values(), *data.left_out.values(), *data.notes):
        one_line(said)


KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "picture": (PICTURES.flatmap(mutated), hold_picture),
    "folder": (FOLDER, hold_folder),
    "members": (SHARD, hold_members),
    "shard": (
        st.tuples(
            st.sampled_from(("s.tar", "s.1.tar", "ü[1].tar", "{0..1}.tar", "a,b.tar")),
            SHARD.map(shard).flatmap(mutated),
        ),
        hold_shard,
    ),
    "list": (LISTS, hold_list),
    "artefact": (st.deferred(lambda: st.one_of([damaged(name) for name in ARTEFACTS])), hold_artefact),
    "rank": (FOLDER, hold_rank),
}


RARE = {"rank": 10}
"""Kinds that take long, and how much less often they are tried."""


def attempt(kind: str, examples: int, seed: int | None = None) -> None:
    """Tries files of one kind; without a seed, always the same ones."""
    files, hold = KINDS[kind]
    options: Any = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
    test = hypothesis.settings(max_examples=examples, derandomize=seed is None, **options)(
        hypothesis.given(files)(hold)
    )
    with warnings.catch_warnings(action="ignore"):
        (test if seed is None else hypothesis.seed(seed)(test))()


if __name__ == "__main__":
    main(fuzz)
