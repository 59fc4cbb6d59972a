from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from patchranking.evaluation.examples import Example, View
from patchranking.report.page import write_report

selenium = pytest.importorskip("selenium.webdriver")
waiting = pytest.importorskip("selenium.webdriver.support.ui")

PASSED = {0.3: [0] * 10 + [1] * 4 + [2] * 6, 0.6: [0] * 4 + [1] * 4 + [2] * 12, 0.9: [1] * 2 + [2] * 18}
SAID = {0.3: ("0.700", "dog"), 0.6: ("0.900", "cat"), 0.9: ("0.990", "cat")}


@pytest.fixture
def report(tmp_path):
    base = {"model": "demo", "dataset": "a-longer-name", "split": "test", "n_images": 9, "oracle": False}
    measured = {
        "top1": 96.0,
        "top1_dense": 96.2,
        "gmacs": 0.31,
        "gmacs_dense": 0.41,
        "feature_cosine": 0.9,
        "recall_at_1": 40.0,
    }
    rows = [
        base | measured | {"method": name, "keep_rate": rate} for rate in PASSED for name in ("patchranking", "evit")
    ]
    views = {
        rate: View(np.array(passed).reshape(4, 5), 2, float(SAID[rate][0]), SAID[rate][1])
        for rate, passed in PASSED.items()
    }
    every = {"patchranking": views, "random": views}
    picture = Image.new("RGB", (40, 32), "red")
    shown = [
        Example(picture, "a cat", np.zeros((4, 5)), every, f"{number}.png", "cat", not number) for number in (0, 1)
    ]
    return write_report({"environment": {}, "rows": rows}, shown, tmp_path / "report.html", "A title")


def patches(browser):
    """How many stages every patch of the first mask passes, by how it is shown."""
    fills = browser.execute_script(
        "return [...document.querySelectorAll('[data-views]')[0].querySelectorAll('rect')]"
        ".map(patch => [getComputedStyle(patch).fillOpacity, getComputedStyle(patch).fill])"
    )
    return [2 if opacity == "0" else 1 if "#later" in fill else 0 for opacity, fill in fills]


def visible(browser):
    rows = browser.find_elements("css selector", "#table-1 tbody tr")
    return [" ".join(row.text.split()[:3]) for row in rows if row.is_displayed()]


def test_the_slider_shows_what_every_stage_keeps_and_what_is_then_said(browser, report):
    browser.get(report.as_uri())
    assert patches(browser) == PASSED[0.6]
    slider = browser.find_element("id", "rate")
    for key, rate in (("ARROW_LEFT", 0.3), ("ARROW_RIGHT", 0.6), ("ARROW_RIGHT", 0.9)):
        slider.send_keys(getattr(selenium.Keys, key))
        assert patches(browser) == PASSED[rate]
        assert browser.find_element("id", "share").text == f"{100 * rate:g} %"
        says = browser.find_element("css selector", "[data-views] .says")
        assert says.text.split() == ["cosine", *SAID[rate]]
        assert ("changed" in says.get_attribute("class")) == (rate == 0.3)


def test_rows_are_filtered_by_words_and_by_method(browser, report):
    browser.get(report.as_uri())
    assert len(visible(browser)) == 6
    words, method = (browser.find_element("css selector", f".tools {name}") for name in ("input", "select"))
    words.send_keys("60 % EVIT")
    assert visible(browser) == ["evit 60 %"]
    assert browser.find_element("css selector", ".tools output").text == "1 of 6 rows"
    words.clear()
    words.send_keys(" ")
    waiting.Select(method).select_by_visible_text("patchranking")
    assert visible(browser) == ["patchranking 90 %", "patchranking 60 %", "patchranking 30 %"]


def test_rows_are_sorted_by_a_column_up_and_down_by_keyboard_too(browser, report):
    browser.get(report.as_uri())
    heads = {head.text: head for head in browser.find_elements("css selector", "#table-1 thead button")}
    heads["Kept"].click()
    assert [row.split()[-2] for row in visible(browser)] == ["90", "90", "60", "60", "30", "30"]
    heads["Kept"].send_keys(selenium.Keys.ENTER)
    assert [row.split()[-2] for row in visible(browser)] == ["30", "30", "60", "60", "90", "90"]
    heads["Method"].click()
    assert [row.split()[0] for row in visible(browser)] == ["evit"] * 3 + ["patchranking"] * 3
    states = [head.get_attribute("aria-sort") for head in browser.find_elements("css selector", "#table-1 thead th")]
    assert [state for state in states if state] == ["ascending"]


def test_the_rows_download_as_csv(browser, report):
    browser.get(report.as_uri())
    browser.find_element("link text", "Download CSV").click()
    file = browser.downloads / "patchranking-a-longer-name-test.csv"
    waiting.WebDriverWait(browser, 20).until(lambda _: file.is_file())
    with file.open(encoding="utf-8-sig") as lines:
        found = list(csv.DictReader(lines))
    assert [(row["method"], row["keep_rate"]) for row in found][:3] == [
        ("patchranking", "0.3"),
        ("evit", "0.3"),
        ("patchranking", "0.6"),
    ]


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nothing_is_wider_than_the_screen_and_nothing_failed(browser, report, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.get_log("browser")  # of earlier pages
    browser.get(report.as_uri())
    seen = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert seen[0] <= seen[1] == width
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1280])
def test_labels_of_a_chart_are_inside_it_and_do_not_overlap(browser, report, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.get(report.as_uri())
    charts = browser.execute_script(
        "const box = node => node.getBoundingClientRect().toJSON();"
        "return [...document.querySelectorAll('.charts svg')].map(svg => "
        "[box(svg), [...svg.querySelectorAll('text')].map(text => [text.textContent, box(text)])])"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert charts
    for chart, labels in charts:
        for number, (text, one) in enumerate(labels):
            assert chart["left"] <= one["left"] < one["right"] <= chart["right"], text
            for other_text, other in labels[number + 1 :]:
                beside = one["right"] <= other["left"] or other["right"] <= one["left"]
                above = one["bottom"] <= other["top"] + 4 or other["bottom"] <= one["top"] + 4
                assert beside or above, (text, other_text)
