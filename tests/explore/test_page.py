"""The page in headless Chromium."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from patchranking import load_data
from patchranking.commands.explore import about
from patchranking.errors import UserError
from patchranking.explore.look import Explorer

pytest.importorskip("gradio")
page = pytest.importorskip("patchranking.explore.page")
waiting = pytest.importorskip("selenium.webdriver.support.ui")
keys = pytest.importorskip("selenium.webdriver").Keys


@pytest.fixture(scope="module")
def address(demo):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
            patch.setenv(name, os.environ.get(name, ""))  # as they were, at the end
        with page.served(Explorer(demo, load_data("demo:test", 6)), about("demo", "demo:test", None), 0) as found:
            yield found


def text_of(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent).join(' ')", selector
    )


def until(browser, found):
    return waiting.WebDriverWait(browser, 90, 0.2).until(lambda _: found())


def until_said(browser, words, selector="#view"):
    until(browser, lambda: words in " ".join(text_of(browser, selector).split()))


@pytest.fixture
def opened(browser, address):
    browser.get(address)
    until_said(browser, "Stage by stage")
    return browser


def drop(browser, path):
    until(browser, lambda: browser.find_elements("css selector", "#picture input[type=file]"))
    browser.find_element("css selector", "#picture input[type=file]").send_keys(str(path))


def test_pictures_classes_methods_and_shares_are_chosen_on_the_page(opened, tmp_path):
    assert "patchranking fit demo demo:train --preset quick --out runs/fit" in text_of(opened, ".pr-head")
    until_said(opened, "CLS attention", "#view h3")
    elsewhere = "return performance.getEntriesByType('resource').filter(one => !one.name.startsWith(location.origin))"
    assert opened.execute_script(elsewhere) == []
    opened.find_element("css selector", "#method input[value='tome']").click()
    until_said(opened, "tokens for 144 patches")
    before = text_of(opened, "#view .pr-tiles")
    opened.find_element("css selector", "#share input[type=range]").send_keys(keys.ARROW_LEFT)
    until(opened, lambda: text_of(opened, "#view .pr-tiles") != before)
    names = opened.find_element("css selector", "#names textarea, #names input")
    names.send_keys("fountain pen, <b>umbrella</b>", keys.ENTER)
    until_said(opened, "<b>umbrella</b>")
    caption = opened.find_element("css selector", "#caption textarea, #caption input")
    caption.send_keys("a fountain pen.", keys.ENTER)
    until_said(opened, "cosine to the caption")
    Image.new("CMYK", (60, 60)).save(tmp_path / "odd.jpg")
    drop(opened, tmp_path / "odd.jpg")
    until_said(opened, "Its colours were turned from CMYK into RGB. It has 60 x 60 pixels")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    drop(opened, tmp_path / "bad.png")
    until_said(opened, "This picture cannot be used: cannot identify the format", "#view [role=alert]")
    opened.find_element("css selector", "#ask").click()
    until_said(opened, "6 images:", "#result")
    until(opened, lambda: len(opened.find_elements("css selector", "#found .thumbnail-item")) == 6)
    opened.find_element("css selector", "#found .thumbnail-item").click()
    until_said(opened, "tokens for 144 patches")


def test_nothing_is_wider_than_a_phone(browser, address):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(address)
        until_said(browser, "Stage by stage")
        sizes = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        assert browser.execute_script(sizes) == [390, 390]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_port_that_is_taken_is_one_sentence(address, demo):
    port = int(address.rpartition(":")[2])
    with (
        pytest.raises(UserError, match=f"Port {port} cannot be used .* give another --port"),
        page.served(Explorer(demo, load_data("demo:test", 1)), "", port),
    ):
        pass
