from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from patchranking.evaluation.examples import Example
from patchranking.report.page import write_report

selenium = pytest.importorskip("selenium.webdriver")


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: install Debian's chromium and chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    running = selenium.Chrome(options, selenium.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture
def report(tmp_path):
    row = {"model": "demo", "dataset": "demo", "split": "test", "n_images": 9, "method": "patchranking"}
    measured = {"keep_rate": 0.6, "top1": 96.0, "top1_dense": 96.2, "gmacs": 0.31, "gmacs_dense": 0.41}
    places = np.random.default_rng(0).permutation(20).reshape(4, 5)
    picture = Image.new("RGB", (40, 32), "red")
    shown = [Example(picture, "a picture", None, {"patchranking": places, "random": places.T})]
    results = {"environment": {}, "rows": [row | measured | {"oracle": False}]}
    return places, write_report(results, shown, tmp_path / "report.html", "A title")


def kept(browser):
    """Places of the patches that are shown as kept in the first mask."""
    found = browser.execute_script(
        "return [...document.querySelector('svg[data-patches]').children]"
        ".filter(patch => getComputedStyle(patch).fillOpacity === '0').map(patch => Number(patch.dataset.place))"
    )
    return sorted(found)


def test_the_slider_changes_the_masks(browser, report):
    _, path = report
    browser.get(path.as_uri())
    assert kept(browser) == list(range(12))
    slider = browser.find_element("id", "rate")
    for rate, count in (("30", 6), ("100", 20), ("5", 1)):
        browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", slider, rate
        )
        assert kept(browser) == list(range(count))
        assert browser.find_element("id", "share").text == f"{rate} %"
    slider.send_keys(selenium.Keys.ARROW_RIGHT)
    assert kept(browser) == [0, 1]


def test_nothing_is_wider_than_a_phone_and_nothing_failed(browser, report):
    browser.set_window_size(390, 844)
    browser.get(report[1].as_uri())
    width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
    assert browser.get_log("browser") == []
