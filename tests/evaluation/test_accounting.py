from __future__ import annotations

from patchranking.data import load_data
from patchranking.evaluation.accounting import accounting


def test_every_image_and_file_is_somewhere():
    data = load_data("demo:test", 5)
    data.left_out = {**{f"{number:02}.db": "no picture" for number in range(15)}, "x.mov": "a film"}
    data.notes = ["classes are numbers"]
    found = accounting(data, 3, {"a": "broken", "b": "empty"})
    assert found == {
        "images": {"in": 5, "evaluated": 3, "skipped": 2, "left_out": 16},
        "skipped": {"a": "broken", "b": "empty"},
        "left_out": {
            "count": 16,
            "reasons": {"no picture": 15, "a film": 1},
            "first": {f"{number:02}.db": "no picture" for number in range(10)},
        },
        "notes": ["classes are numbers"],
    }
