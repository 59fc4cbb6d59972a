"""What the benchmarks share: their command line, and results that survive a kill."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patchranking.commands.arguments import run
from patchranking.data import ImageData, load_data
from patchranking.errors import UserError
from patchranking.files import make_folder, write_json
from patchranking.fitting.settings import FitSettings
from patchranking.pruning.schedule import Schedule
from patchranking.tuning.tune import TuneSettings

DEFAULTS = {
    "fit": asdict(FitSettings()),
    "schedule": Schedule.default(12, 0.5).to_dict(),
    "tune": asdict(TuneSettings()),
}
"""What a benchmark that fits stores of today's defaults; its file is out of date once they are others."""


def main(benchmark: Callable[..., None]) -> None:
    """Runs a benchmark with the arguments of the command line; a user's mistake ends with one sentence."""
    run(benchmark, sys.argv[1:], Path(sys.argv[0]).name)


def training_data(train: str | None, limit: int | None) -> ImageData:
    """The images of ``--train``, which no benchmark that fits can do without."""
    if train is None:
        raise UserError("A predictor has to be fitted: give its training images with --train DATA.")
    return load_data(train, limit, 0, "train")


class Results:
    """The JSON file of a benchmark, written in one go at the end.

    Units of work are kept beside it, in ``NAME.partial``, as soon as they are finished, so that a killed run goes on.

    Args:
        out: The JSON file.

    Raises:
        UserError: If other arguments left unfinished work there.
    """

    def __init__(self, out: Path) -> None:
        make_folder(out.parent)
        self._out, self._partial = out, out.with_suffix(".partial")
        self._done: dict[str, Any] = {}
        if self._partial.is_file():
            left = json.loads(self._partial.read_text())
            if left["arguments"] != sys.argv[1:]:
                raise UserError(
                    f"'{self._partial}' is of a run with other arguments: give the same ones to go on, or delete it."
                )
            self._done = left["done"]

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """What a unit of work finds, as JSON holds it; computed unless it is finished already."""
        if key not in self._done:
            self._done[key] = compute()
            write_json(self._partial, {"arguments": sys.argv[1:], "done": self._done})
            print(f"finished {key}", flush=True)
        return self._done[key]

    def write(self, environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Writes the file and removes what was kept beside it."""
        write_json(self._out, {"environment": environment, **more, "rows": rows})
        self._partial.unlink(missing_ok=True)
        print(f"wrote {self._out}")
