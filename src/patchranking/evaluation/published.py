"""What *Patch Ranking* (arXiv 2409.14607v1) publishes, and where its figures contradict each other.

OpenAI CLIP ViT-B/16, one template a data set, no seeds and no variance. Figures 1 and 5 were read off the drawings, to
0.2 points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

_SEVEN = ("Caltech101", "OxfordPets", "Flowers102", "Food101", "FGVCAircraft", "DTD", "UCF101")


def paper_name(name: str) -> str | None:
    """The paper's name of a data set, None for one it does not have (imagenette is not ImageNet)."""
    lower = name.lower()
    return next((full for word, full in NAMES.items() if word in lower and "nette" not in lower), None)


def _rows(text: str) -> list[list[float]]:
    return [[float(value) for value in line.split()] for line in text.strip().splitlines()]


def _table1() -> dict[tuple[str, str], list[float]]:
    """(data set, row) -> accuracy at 80, 70, 60, 50 % kept; matching rates, at 100 patches, have one value."""
    golden = _rows(
        """
        94.9 94.6 94.0 92.4  91.6 90.9 90.4 89.1  92.8 92.4 92.2 91.4
        93.9 94.6 94.4 93.8  88.1 88.2 88.0 87.2  88.9 88.4 88.0 85.4
        80.6 82.3 83.2 80.8  70.6 70.6 70.3 68.5  70.8 70.4 69.1 66.9
        95.9 96.4 96.2 95.0  86.1 86.0 85.7 84.7  85.8 85.4 84.1 79.5
        43.5 43.6 44.2 43.5  24.2 23.8 23.9 23.5  25.0 24.8 24.5 23.4
        53.1 54.0 54.7 55.1  44.3 44.1 44.4 44.3  44.1 44.0 43.9 43.3
        79.0 79.1 78.7 77.1  66.2 65.0 64.6 63.5  66.6 67.4 67.0 65.2
        """
    )
    predicted = _rows(
        """
        91.6 89.1 86.4 83.9  91.5 88.4 85.3 83.4  93.6 93.2 93.4 91.0
        87.7 87.1 85.9 84.5  86.8 86.0 84.6 83.1  88.6 88.4 88.1 83.5
        68.8 66.7 65.7 63.3  68.5 67.3 65.6 62.5  69.6 68.8 67.9 63.9
        83.6 80.6 77.4 72.1  83.2 80.3 76.9 71.7  85.1 84.2 82.8 75.8
        17.6 17.3 17.1 17.1  18.6 18.7 18.2 17.9  23.2 23.2 22.9 22.4
        44.6 44.6 45.0 43.3  44.9 44.6 44.7 43.0  45.0 44.2 43.7 43.0
        65.2 63.6 60.0 56.4  64.7 62.3 58.7 54.6  66.6 65.9 65.2 60.9
        """
    )
    matching = _rows(
        """
        56.7 57.0 78.0
        59.8 60.4 78.2
        56.8 57.8 71.9
        55.5 55.5 71.9
        60.1 61.4 89.3
        55.7 56.1 72.3
        55.9 55.9 79.7
        """
    )
    dense = (93.5, 89.5, 70.5, 86.0, 23.4, 45.1, 67.0)
    found: dict[tuple[str, str], list[float]] = {}
    for row, name in enumerate(_SEVEN):
        found[name, "dense"] = [dense[row]] * 4
        for column, score in enumerate(("label", "confidence", "preservation")):
            part = slice(4 * column, 4 * column + 4)
            found[name, f"golden, {score}"] = golden[row][part]
            found[name, f"predicted, {score}"] = predicted[row][part]
            found[name, f"matching rate, {score}"] = [matching[row][column]]
    return found


def _by_set(names: tuple[str, ...], rows: dict[str, str]) -> dict[tuple[str, str], list[float]]:
    return {
        (name, label): [value]
        for label, text in rows.items()
        for name, value in zip(names, _rows(text)[0], strict=True)
    }


PUBLISHED: dict[str, dict[tuple[str, str], Any]] = {
    "table1": _table1(),
    "table4": _by_set(
        (*_SEVEN, "ImageNet"),
        {
            "evit": "92.5 87.1 67.1 80.3 23.3 43.3 63.3 58.1",
            "a-vit": "91.4 83.2 67.7 82.3 21.7 43.5 63.3 57.6",
            "tome": "91.5 87.2 67.7 82.4 20.4 41.5 64.9 58.3",
            "patchranking": "93.4 88.1 67.9 82.8 22.9 43.7 65.2 59.5",
        },
    ),
    "table5": _by_set(
        _SEVEN,
        {
            "dense": "93.5 89.5 70.5 86.0 23.4 45.1 67.0",
            "pruned": "93.4 88.1 67.9 82.8 22.9 43.7 65.2",
            "dense + text": "95.2 92.5 95.7 84.8 37.3 70.0 81.7",
            "pruned + text": "94.5 91.7 93.8 82.3 34.7 67.4 81.0",
            "dense + both": "95.6 92.3 95.5 84.9 37.6 69.7 82.7",
            "pruned + both": "95.1 92.2 95.4 84.2 38.8 68.9 81.8",
        },
    ),
    "figure1": {
        ("Flowers102", "cls-attention"): [70.5, 70.2, 69.8, 69.0, 66.0, 60.0],
        ("Flowers102", "patchranking"): [70.5, 70.2, 70.0, 69.5, 68.5, 64.0],
        ("Flowers102", "patchranking + text"): [95.8, 95.8, 96.0, 95.5, 94.0, 89.0],
        ("Flowers102", "patchranking + both"): [95.8, 95.8, 96.2, 95.5, 94.2, 94.5],
    },
    "figure5": {
        (name, method): values[part]
        for name, values in zip(
            _SEVEN,
            _rows(
                """
                93.4 93.0 92.7 92.0 90.0  93.5 93.4 93.5 93.2 91.9
                89.0 88.4 87.7 86.3 83.3  89.2 88.9 88.9 87.9 85.4
                69.9 69.5 68.8 66.7 61.1  70.4 69.5 68.6 67.5 65.0
                85.7 85.1 84.2 81.9 75.0  85.7 85.3 84.8 83.7 78.4
                23.4 23.3 23.1 22.7 22.5  23.5 23.3 23.4 22.4 22.4
                45.0 44.4 44.4 43.1 42.4  44.8 44.4 44.2 44.6 43.1
                65.8 65.2 64.4 62.7 59.5  66.4 66.3 65.2 64.5 61.9
                """
            ),
            strict=True,
        )
        for method, part in (("cls-attention", slice(0, 5)), ("patchranking", slice(5, 10)))
    },
}
"""Name of a table or figure -> (data set, row) -> one value a column."""

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
