"""patchranking reproduce."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.evaluation.environment import environment
from patchranking.evaluation.published import markdown
from patchranking.files import as_file_name, make_folder, write_json
from patchranking.fitting.settings import FitSettings
from patchranking.methods.attach import fitted_pruner
from patchranking.reproduce import Job, TableName
from patchranking.reproduce import reproduce as reproduce_table
from patchranking.towers.load import load_model
from patchranking.tuning.tune import TuneSettings

__all__ = ["reproduce"]


def reproduce(
    table: TableName,
    model: str = "demo",
    data: list[str] = ["demo:test"],  # noqa: B006
    train: list[str] = [],  # noqa: B006
    pruner: Path | None = None,
    out: Path = Path("runs/reproduce"),
    ranked: int = 400,
    steps: int = 300,
    num_tokens: int = 16,
    epochs: int = 20,
    learning_rate: float = 2e-3,
    augment: bool = True,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Measures a table or figure of the paper on your data sets, next to what it publishes; resumes after a kill.

    Args:
        table: table1 (golden and predicted rankings), table4 (other methods), table5 and figure1 (tuned tokens), or
            figure5 (the first layer).
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH or hf:NAME_OR_PATH.
        data: DATA arguments with classes to test on, such as torchvision:Flowers102:test; see evaluate.
        train: One DATA argument for each of them to fit and tune on; by default demo:train for the demo.
        pruner: Folder written by fit, or a repository on the Hub, used in place of fits where it drops patches before
            the same block.
        out: Folder for the table, and for all that is ranked, fitted and tuned for it.
        ranked: Images ranked for a fit, and test images that golden rows are measured on.
        steps: Steps of distillation; table1 has the paper's predictor, which imitates.
        num_tokens: Tokens of each encoder.
        epochs: Of tuning.
        learning_rate: Of tuning.
        augment: Tune on random crops.
        limit: Maximum number of images of each data set, drawn by seed.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    if train and len(train) != len(data):
        raise UserError(f"Give one --train for each of --data, in the same order: {len(data)}, not {len(train)}.")
    if not train and {name.partition(":")[0] for name in data} == {"demo"}:
        train = ["demo:train"] * len(data)
    fitted = None if pruner is None else fitted_pruner(pruner)
    loaded, folder = load_model(model, device), make_folder(out)
    fitting = FitSettings("both" if steps else "imitate", ranked=ranked, steps=steps, seed=seed)
    tuning = TuneSettings(num_tokens=num_tokens, epochs=epochs, learning_rate=learning_rate, augment=augment)
    rows: list[dict[str, Any]] = []
    for place, name in enumerate(data):
        test = load_data(name, limit, seed)
        images = load_data(train[place], limit, seed, "train") if train else None
        own = folder / as_file_name(f"{model} {name}")
        done = own / f"{table}.json"
        if not done.is_file():
            job = Job(loaded, test, images, fitted, own, fitting, tuning, seed)
            write_json(done, {"rows": reproduce_table(table, job)})
        rows += json.loads(done.read_text())["rows"]
    write_json(folder / f"{table}.json", {"environment": environment(loaded.tower.device), "rows": rows})
    text = markdown(table, rows)
    (folder / f"{table}.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote {folder / f'{table}.md'} and {folder / f'{table}.json'}")
