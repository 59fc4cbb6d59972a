"""Files that are damaged, odd or hostile, as strategies of hypothesis."""

from __future__ import annotations

import atexit
import functools
import io
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from patchranking import LoadedModel, Pruner, Schedule, load_data, load_model, rank

EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    10**9,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    [],
    {},
    [-1],
    {"3": 2},
)
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
ARTEFACTS = (
    *("pruner/config.json", "pruner/model.safetensors"),
    *("rankings/_manifest.json", "rankings/shard-00000-of-00001.parquet"),
)
