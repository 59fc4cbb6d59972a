from __future__ import annotations

import pytest

from patchranking.evaluation.published import NOTES, PUBLISHED, markdown, paper_name


def test_known_sets_are_found_by_their_usual_names():
    assert paper_name("OxfordIIITPet") == "OxfordPets"
    assert paper_name("oxford_flowers") == "Flowers102"
    assert paper_name("UCF-101-midframes") == "UCF101"
    assert paper_name("imagenette") is None
    assert paper_name("demo") is None


def test_the_papers_means_come_out():
    seven = {name for name, _ in PUBLISHED["table1"]}
    assert len(seven) == 7

    def mean(table, row, place=0):
        return sum(PUBLISHED[table][name, row][place] for name in seven) / 7

    assert mean("table1", "dense") == pytest.approx(67.9, abs=0.06)
    for place, expected in enumerate((67.4, 66.8, 66.3, 62.9)):
        assert mean("table1", "predicted, preservation", place) == pytest.approx(expected, abs=0.06)
    expected = {"dense + text": 79.6, "pruned + text": 77.9, "dense + both": 79.8, "pruned + both": 79.5}
    for row, value in expected.items():
        assert mean("table5", row) == pytest.approx(value, abs=0.06)
    assert set(PUBLISHED) == set(NOTES)


def test_the_inconsistencies_named_are_in_the_figures():
    evit = [values[0] for (_, row), values in PUBLISHED["table4"].items() if row == "evit"]
    assert sum(evit) / 8 == pytest.approx(64.4, abs=0.05)
    for name in {name for name, _ in PUBLISHED["table5"]}:
        assert PUBLISHED["table5"][name, "pruned"][0] == PUBLISHED["table1"][name, "predicted, preservation"][2]


def test_markdown_has_sets_as_columns_or_a_table_for_each():
    one = {"dataset": "food", "row": "evit", "column": "progressive", "measured": 81.04, "published": 80.3}
    text = markdown("table4", [one | {"oracle": False}, one | {"dataset": "x", "published": None, "oracle": False}])
    assert "| | food | x |" in text
    assert "| evit | 81.0 (80.3) | 81.0 (–) |" in text
    assert "- The paper has no ImageNet accuracy" in text
    rates = [one | {"row": "golden, label", "column": column, "oracle": True} for column in ("80%", "70%")]
    text = markdown("table1", rates)
    assert "## food" in text
    assert "| | 80% | 70% |" in text
    assert "| golden, label (oracle) | 81.0 (80.3) | 81.0 (80.3) |" in text
