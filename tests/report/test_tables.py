from __future__ import annotations

import base64
import csv
import io

from patchranking.report.tables import as_csv, csv_link, oracle_table


def test_csv_has_every_figure_in_full() -> None:
    rows = [
        {
            "method": "a",
            "top1": 61.23456,
            "top1_change_interval": [-0.5, 1.25],
            "schedule": {"3": 0.6},
            "oracle": False,
        },
        {"method": 'b, "c"', "top1": None, "top1_change_interval": None, "schedule": None, "more": 3},
    ]
    first, second = csv.DictReader(io.StringIO(as_csv(rows)))
    assert first == {
        "method": "a",
        "top1": "61.23456",
        "top1_change_interval_low": "-0.5",
        "top1_change_interval_high": "1.25",
        "schedule": '{"3": 0.6}',
        "oracle": "False",
        "more": "",
    }
    assert (second["method"], second["top1"], second["top1_change_interval_low"], second["more"]) == (
        'b, "c"',
        "",
        "",
        "3",
    )


def test_csv_holds_no_formulas_and_numbers_stay_numbers() -> None:
    names = ["=1+1", "+1", "-1", "@a", "fine"]
    found = list(csv.DictReader(io.StringIO(as_csv([{"dataset": name, "top1": -1.5} for name in names]))))
    assert [row["dataset"] for row in found] == ["'=1+1", "'+1", "'-1", "'@a", "fine"]
    assert {row["top1"] for row in found} == {"-1.5"}


def test_the_link_holds_the_file() -> None:
    start, data = csv_link([{"method": "ä"}]).split(",")
    assert start == "data:text/csv;charset=utf-8;base64"
    assert base64.b64decode(data).decode("utf-8-sig") == "method\r\nä\r\n"


def test_an_oracle_without_others_on_its_images_has_dashes_beside_it() -> None:
    row = {"method": "golden", "keep_rate": 0.5, "n_images": 3, "top1": 66.7, "feature_cosine": 0.9, "top1_dense": 9.0}
    table = oracle_table([row])
    assert table["methods"] == []
    assert table["lines"][0]["cells"] == [("66.7", "0.900"), ("–", "–")]
    assert table["lines"][0]["change"] == "–"
    assert oracle_table([]) is None
