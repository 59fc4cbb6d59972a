"""Files that are damaged, odd or hostile, and what is promised whatever they hold.

An error is a ``UserError`` of one sentence, every picture is used or accounted for, and reading writes nothing.
"""

from __future__ import annotations

import atexit
import functools
import io
import json
import os
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from PIL import Image

from patchranking import LoadedModel, Pruner, Schedule, load_data, load_model, rank
from patchranking.data import ImageData, read_batches
from patchranking.data.base import printable
from patchranking.data.images import UnreadableImageError, read_image
from patchranking.errors import UserError
from patchranking.ranking.store import golden_by_index

EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
JUNK = (None, True, -1, 0, 1, 10**9, 10**30, 0.5, float("nan"), float("inf"), "", "x", "\ud800", [], {}, [-1], {"3": 2})
NAMES = (
    *("a.png", "a.PNG", "b.jpg", "b.1.jpg", "c.jfif", "d.txt", "e", "f.heic", "Thumbs.db", ".hidden", "@eaDir", "~"),
    *("train", "val", "cat", "dog", "n01440764", "n02102040", "ü.png", "\udce9.png", "new\nline.png", "%s.png"),
    *("x" * 251 + ".png", "x" * 256, "a,b", "wds:x", "classnames.txt", "split_zhou_X.json", "captions.csv"),
)
MEMBERS = (
    *("a.png", "a.cls", "a.1.png", "a.1.cls", "b.jpg", "b.json", "c/d.png", "./e.png", "../../up.png", "/abs.png"),
    *("ü.png", "\udce9.png", "x" * 300 + ".png", ".hidden/f.png", "@eaDir/g.png", "h", "i.heic", ".png", ".cls"),
)
TEXTS = (
    *("image,caption\n", "image\tcaption\n", "caption,image\n", "a.png", "b.png", "../up.png", "/abs.png", "two words"),
    *(",", '"', "\n", "\r\n", "\t", "\0", "\ufeff", "é", "猫", "x" * 200_000),
)
COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
SPLITS = {"train": [["a.png", 0, "cat"]], "test": [["a.png", 0, "cat"], ["b.png", 1, "dog"], ["b.png", 1, "dog"]]}


@functools.cache
def picture(kind: str = "PNG") -> bytes:
    """A small picture as a file of a kind."""
    content = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(content, kind)
    return content.getvalue()


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """A file that is cut, or in which some bytes are others, most of them near its start."""
    made = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, min(len(made), 200)) | st.integers(0, len(made)))
        size = draw(st.sampled_from((1, 2, 4)))
        value = draw(st.sampled_from(EXTREMES) | st.integers(0, 2**32 - 1)) & ((1 << 8 * size) - 1)
        piece = value.to_bytes(size, "big" if draw(st.booleans()) else "little")
        made[place : place + draw(st.sampled_from((0, size)))] = piece
    return bytes(made[: draw(st.none() | st.integers(0, len(made)))])


def shard(members: list[tuple[str, bytes, bytes]]) -> bytes:
    """A tar file of names, types and contents."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", errors="surrogateescape") as archive:
        for name, kind, content in members:
            about = tarfile.TarInfo(name)
            about.type, about.size, about.linkname = kind, len(content) * (kind == b"0"), "../../up"
            archive.addfile(about, io.BytesIO(content) if kind == b"0" else None)
    return made.getvalue()


@functools.cache
def load_demo() -> LoadedModel:
    """The demo model."""
    return load_model("demo")


@functools.cache
def artefacts() -> Path:
    """A folder with a pruner and rankings of the demo model, removed at the end."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Pruner.unfitted(load_demo().tower, "demo", Schedule({3: 0.5})).save_pretrained(folder / "pruner")
    rank(load_demo(), load_data("demo", 2), folder / "rankings")
    return folder


def damaged(name: str) -> st.SearchStrategy[tuple[str, bytes | None]]:
    """Damaged contents of a file of the artefacts, or none; of JSON, also sound JSON with another value."""
    content = (artefacts() / name).read_bytes()
    files = mutated(content) | st.none()
    if name.endswith(".json"):
        files |= altered(json.loads(content)).map(lambda own: json.dumps(own).encode())
    return files.map(lambda own: (name, own))


@st.composite
def altered(draw: st.DrawFn, content: Any) -> Any:
    """JSON in which one value is another, or is not there."""
    if not isinstance(content, dict | list) or not content or not draw(st.integers(0, 4)):
        return draw(st.sampled_from(JUNK))
    made: Any = content.copy()
    place: Any = draw(st.sampled_from(list(content) if isinstance(content, dict) else range(len(content))))
    if draw(st.integers(0, 5)):
        made[place] = draw(altered(content[place]))
    else:
        del made[place]
    return made


PICTURES = st.sampled_from(("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "ICO", "TGA")).map(picture)
CONTENTS = st.sampled_from((picture(), picture(), b"", b"broken", b"cat\ndog", b"n01440764 tench\nn02102040 tench"))
LINKS = st.sampled_from(("folder", "pipe", "link .", "link ..", "link nowhere", "link a.png", "link cat"))
FOLDER = st.lists(
    st.tuples(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join), CONTENTS | LINKS), max_size=8
)
MEMBER_KINDS = st.sampled_from((*[b"0"] * 6, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE))
CLASSES = st.sampled_from((b"3", b"-1", b"9" * 600))
SHARD = st.lists(st.tuples(st.sampled_from(MEMBERS), MEMBER_KINDS, CONTENTS | CLASSES), max_size=8)
LINES = st.tuples(st.sampled_from(("", "image,caption\n")), st.lists(st.sampled_from(TEXTS))).map(
    lambda own: own[0] + "".join(own[1])
)
LISTS = st.one_of(
    st.tuples(
        st.sampled_from(("list.csv", "list.tsv")),
        st.builds(
            lambda text, encoding: text.encode(encoding, "replace"),
            LINES,
            st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "cp1252")),
        ),
    ),
    altered(COCO).map(lambda own: ("list.json", json.dumps(own).encode())),
    altered(COCO["annotations"]).map(lambda own: ("list.json", json.dumps(own).encode())),
    altered(SPLITS).map(lambda own: ("split_zhou_X.json", json.dumps(own).encode())),
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
        for name, content in entries:
            with suppress(OSError):
                put(where / name, content)
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
            for name, kind, _ in members:
                path = f"s/{printable(name.removeprefix('./'))}"
                assert kind == tarfile.DIRTYPE or known & {path, os.path.splitext(path)[0], path.partition(".")[0]}, (
                    path
                )


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
        for name, content in entries:
            with suppress(OSError):
                put(where / name, content)
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


ARTEFACTS = (
    *("pruner/config.json", "pruner/model.safetensors"),
    *("rankings/_manifest.json", "rankings/shard-00000-of-00001.parquet"),
)
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
    "artefact": (st.deferred(lambda: st.one_of(map(damaged, ARTEFACTS))), hold_artefact),
    "rank": (FOLDER, hold_rank),
}


def attempt(kind: str, examples: int, seed: int | None = None) -> None:
    """Tries files of one kind; without a seed, always the same ones."""
    files, hold = KINDS[kind]
    options: Any = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
    test = hypothesis.settings(max_examples=examples, derandomize=seed is None, **options)(
        hypothesis.given(files)(hold)
    )
    with warnings.catch_warnings(action="ignore"):
        (test if seed is None else hypothesis.seed(seed)(test))()
