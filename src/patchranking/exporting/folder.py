"""The folder of an exported model: where its files are, and what config.json says of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, get_args

from patchranking.checkpoint import digest
from patchranking.errors import UserError
from patchranking.exporting.backends import BACKENDS
from patchranking.exporting.settings import BackendName, LayoutName, PrecisionName

__all__ = ["CONFIG_FILE", "Exported", "foreign", "is_exported"]

CONFIG_FILE = "config.json"
FORMAT = 1
_BLOCK = 2**22


@dataclass(frozen=True)
class Exported:
    """What ``config.json`` says.

    Attributes:
        model: The MODEL argument.
        base_model: What a pruner knows of it, ``BaseModel``.
        backend: Kind of the files.
        precision: Of the image encoder.
        layout: Where they are.
        feature_size: Channels of a feature.
        normalised: Whether image features are unit vectors.
        logit_scale: Multiplier of cosines.
        keep: Share of the patches that reaches the end.
        schedule: Block -> share of the patches that enters it; None of the dense model.
        pruner: SHA-256 of the pruner's weights; None without one.
        tuned: The tokens that were tuned.
        macs_share: Multiply-accumulates of the image encoder as a share of the dense one's, by formula.
        context_length: Ids of a text; None without a text encoder.
        class_names: Of the rows of the class features.
        check: How far the files agree with PyTorch, and lower precision with float32 on ``images`` of the user's.
        processor: Where that was measured; int8 and bf16 give other features on processors with other instructions.
        versions: Of the libraries that wrote them.
        files: Path in the folder -> SHA-256 of the file.
    """

    model: str
    base_model: Mapping[str, Any]
    backend: BackendName
    precision: PrecisionName
    layout: LayoutName
    feature_size: int
    normalised: bool
    logit_scale: float
    keep: float
    schedule: Mapping[str, float] | None
    pruner: str | None
    tuned: str
    macs_share: float
    context_length: int | None = None
    class_names: list[str] = field(default_factory=list)
    check: Mapping[str, float] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def image(self) -> str:
        """The file of the image encoder."""
        return self._place("image", "visual/model") + BACKENDS[self.backend].suffix

    @property
    def preprocessing(self) -> str:
        """How pictures become pixels."""
        return self._place("preprocess_cfg.json", "visual/preprocess_cfg.json")

    @property
    def text(self) -> str:
        """The file of the text encoder."""
        return self._place("text", "textual/model") + BACKENDS[self.backend].suffix

    @property
    def tokenizer(self) -> str:
        """How texts become ids."""
        return self._place("tokenizer.json", "textual/tokenizer.json")

    @property
    def classes(self) -> str:
        """Unit features of classes, ``(classes, features)``, as numpy writes them."""
        return "class_features.npy"

    def _place(self, plain: str, immich: str) -> str:
        return plain if self.layout == "plain" else immich

    @property
    def fingerprint(self) -> str:
        """What tells its files from others."""
        return digest([*self.files.values()])

    def write(self, folder: Path, more: Mapping[str, Any]) -> None:
        """Writes config.json last, with what else it is to say, and the sums of all other files."""
        files = {path.relative_to(folder).as_posix(): _sha256(path) for path in _files(folder)}
        content = {"patchranking_export": FORMAT} | asdict(self) | {"files": files} | dict(more)
        (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads config.json and checks that every file is as it was written.

        Raises:
            UserError: If there is no exported model, a later version wrote it, or files are missing or damaged.
        """
        content = _content(folder)
        if content is None:
            raise UserError(f"There is no exported model in '{folder}': write one with patchranking export.")
        if content["patchranking_export"] != FORMAT:
            raise UserError(
                f"'{folder}' is an export of format {content['patchranking_export']}, and this version reads "
                f"{FORMAT}: install the version of patchranking that wrote it, or export again."
            )
        try:
            found = cls(**{name: content[name] for name in cls.__dataclass_fields__})
            names = (*BACKENDS, *get_args(LayoutName), *get_args(PrecisionName))
            if not {found.backend, found.layout, found.precision} <= {*names}:
                raise KeyError(found.backend)
            wrong = [name for name, known in found.files.items() if _sha256(folder / name) != known]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"The config.json of '{folder}' is damaged: export the model again.") from error
        except OSError as error:
            raise UserError(f"'{error.filename}' is missing or unreadable: export the model again.") from error
        if wrong:
            raise UserError(f"'{folder / wrong[0]}' is damaged: export the model again.")
        return found


def is_exported(folder: Path) -> bool:
    """Whether there is an exported model in a folder, damaged or not."""
    return _content(folder) is not None


def foreign(folder: Path) -> Path | None:
    """A file that is no part of an exported model, where a folder is to be; None where there is none."""
    content = _content(folder) or {}
    known = {CONFIG_FILE, *content["files"]} if isinstance(content.get("files"), dict) else set()
    others = (path for path in _files(folder) if path.relative_to(folder).as_posix() not in known)
    return folder if folder.is_file() else next(others, None)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _content(folder: Path) -> dict[str, Any] | None:
    """What ``config.json`` holds, damaged or not; None where it is not one of an exported model."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "patchranking_export" in content else None


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
