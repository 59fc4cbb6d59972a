"""What *Patch Ranking* (arXiv 2409.14607v1) publishes, and where its figures contradict each other.

OpenAI CLIP ViT-B/16, one template a data set, no seeds and no variance. Figures 1 and 5 were read off the drawings, to
0.2 points.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

__all__ = ["NAMES", "NOTES", "PUBLISHED", "markdown", "paper_name"]

NAMES = {
    "caltech": "Caltech101",
    "pet": "OxfordPets",
    "flowers": "Flowers102",
    "food": "Food101",
    "aircraft": "FGVCAircraft",
    "dtd": "DTD",
    "ucf": "UCF101",
    "imagenet": "ImageNet",
}
"""A word in the name of a data set -> its name in the paper."""

_TABLES: dict[str, dict[str, dict[str, list[float]]]] = json.loads(
    files("patchranking.evaluation").joinpath("published.json").read_text()
)
PUBLISHED = {
    table: {(dataset, row): values for dataset, rows in sets.items() for row, values in rows.items()}
    for table, sets in _TABLES.items()
}
"""Name of a table or figure -> (data set, row) -> one value per column; table1 at 80, 70, 60, 50 % kept."""

NOTES = {
    "table1": [
        "Rows of the label score have read the label of the very image they are tested on, and golden rows have run "
        "the model on it many times: oracles.",
        "A random choice matches 51 % of the first 100 of 196 patches: matching rates of 55 to 61 % are near chance.",
        "The paper's Table 2 has other figures on its diagonal at 50 % (Food 81.9 against 75.8 here, Flowers 67.2 "
        "against 63.9, Pets 86.7 against 83.5).",
    ],
    "table4": [
        "The paper says 16.8 GFLOPs in every row; 20 patches before each of layers 4, 6, 8 and 10 save 3.6 of 17.6 "
        "billion multiply-accumulates, and 16.8 is its Figure 1 at 50 % in one step.",
        "EViT's row has a mean of 64.4 over the eight sets, not the 64.3 printed, and EViT is ahead on FGVCAircraft.",
        "The paper has no ImageNet accuracy of the dense model; with one template it is about 66 to 67 %.",
    ],
    "table5": [
        "The pruned row without tokens repeats Table 1 at 60 % in one step, digit for digit, though it is said to be "
        "progressive.",
        "The abstract's loss of 0.3 is that of both kinds of tokens, pruned against dense; without tokens it is 1.6.",
        "Table 7 has the last setting again with values up to 1.2 points away.",
    ],
    "figure1": ["The caption says Caltech101; the values are those of Flowers102."],
    "figure5": [],
}
"""Name of a table or figure -> what to know before comparing with it."""


def markdown(table: str, rows: list[dict[str, Any]]) -> str:
    """The table in the paper's layout, ``measured (published)``, and what to know before comparing."""
    columns = list(dict.fromkeys(row["column"] for row in rows))
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    labels = list(dict.fromkeys(row["row"] for row in rows))
    oracles = {row["row"] for row in rows if row["oracle"]}
    cells = {(row["dataset"], row["row"], row["column"]): _cell(row) for row in rows}

    def grid(heads: list[str], keys: Callable[[str, str], tuple[str, str, str]]) -> list[str]:
        lines = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
        for label in labels:
            found = [cells.get(keys(label, head), "") for head in heads]
            lines.append(f"| {label}{' (oracle)' * (label in oracles)} | {' | '.join(found)} |")
        return lines

    parts = [f"# {table}, measured (published)", ""]
    if len(columns) == 1:
        parts += grid(datasets, lambda label, dataset: (dataset, label, columns[0]))
    else:
        for dataset in datasets:
            parts += [f"## {dataset}", "", *grid(columns, lambda label, c, d=dataset: (d, label, c)), ""]  # type: ignore[misc]
    return "\n".join([*parts, "", *(f"- {note}" for note in NOTES[table])]) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
    known = "–" if row["published"] is None else f"{row['published']:.1f}"
    return f"{row['measured']:.1f} ({known})"


def paper_name(name: str) -> str | None:
    """The paper's name of a data set, None for one it does not have (imagenette is not ImageNet)."""
    lower = name.lower()
    return next((full for word, full in NAMES.items() if word in lower and "nette" not in lower), None)
