"""The page in a real browser: typed into, wrong and empty, by keyboard alone, in its looks.

Chromium and its driver must be installed (Debian: chromium, chromium-driver) and selenium (the
extra browser). SHOAL_SHOTS names a folder for pictures of each look.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal import LabelModel
from shoal.serve.limits import Limits
from tests.serve.fakes import Known, answer, serving

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1000,900",
)
LIMITS = Limits(max_characters=200)


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A headless browser of this machine's own; no driver is looked for elsewhere."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="pip install 'torch-shoal[browser]'"
    )
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, *flags):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests of its module."""
    with chromium() as found:
        yield found


def until(browser: Any, condition: Callable[[], object]) -> None:
    """Wait until the page is as it should be."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 15, poll_frequency=0.05).until(lambda _: condition())


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def shown(browser: Any) -> list[tuple[str, str]]:
    """Titles and scores as a person reads them."""
    script = "return [...document.querySelectorAll('#labels li')].map(x => ['title', 'score'].map("
    rows = browser.execute_script(script + "c => x.querySelector('.' + c).textContent))")
    return [(title, score) for title, score in rows]


def expected(text: str, k: int) -> list[tuple[str, str]]:
    return [(found.title, f"{found.score:.3f}") for found in answer(text, k)]


def type_into(browser: Any, *keys: str) -> None:
    """Type wherever the focus is, as a person without a mouse does."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def retype(browser: Any, selector: str, text: str) -> None:
    """Replace what a field holds."""
    from selenium.webdriver import ActionChains, Keys

    find(browser, selector).click()
    chord = ActionChains(browser).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL)
    chord.send_keys(text or Keys.DELETE).perform()


def status(browser: Any) -> str:
    return find(browser, "#status").text


def complaints(browser: Any) -> list[str]:
    """What the browser's console holds against the page."""
    return [entry["message"] for entry in browser.get_log("browser")]


def test_labels_follow_what_is_typed(browser: Any) -> None:
    """Labels with scores arrive without a click, follow a change, and go with the text."""
    with serving(Known(), LIMITS) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        until(browser, lambda: "Model known, 7 labels" in browser.page_source)
        assert status(browser) == "Type a text to see its labels."
        type_into(browser, "red mug")
        until(browser, lambda: shown(browser) == expected("red mug", 5))
        assert status(browser).startswith("5 labels in ")
        type_into(browser, "s")
        until(browser, lambda: shown(browser) == expected("red mugs", 5))
        retype(browser, "#text", "")
        until(browser, lambda: status(browser) == "Type a text to see its labels.")
        assert shown(browser) == [] and complaints(browser) == []


def test_the_keyboard_is_enough(browser: Any) -> None:
    """From the text Tab leads to the button, then to the number of labels; Ctrl+Enter asks."""
    from selenium.webdriver import ActionChains, Keys

    with serving(Known(), LIMITS) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        stops = [browser.switch_to.active_element.get_attribute("id")]
        type_into(browser, "hat")
        until(browser, lambda: shown(browser) == expected("hat", 5))
        for _ in range(2):
            type_into(browser, Keys.TAB)
            stops.append(browser.switch_to.active_element.get_attribute("id"))
        assert stops == ["text", "ask", "k"]
        type_into(browser, Keys.BACKSPACE, "2", Keys.ENTER)
        until(browser, lambda: shown(browser) == expected("hat", 2))
        chord = ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.TAB, Keys.TAB)
        chord.key_up(Keys.SHIFT).perform()
        browser.execute_script("clearTimeout(timer); askSoon = () => {}")
        type_into(browser, " box")
        chord = ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER)
        chord.key_up(Keys.CONTROL).perform()
        until(browser, lambda: shown(browser) == expected("hat box", 2))


def test_what_is_wrong_is_said(browser: Any) -> None:
    """A refusal shows what was expected, what came and what to do; so does a server that is gone.

    No labels of an earlier text stay beside it, and a good text takes it away.
    """
    with serving(Known(), LIMITS) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        type_into(browser, "a" * 201)
        until(browser, lambda: "expected at most 200 characters, got 201" in error(browser))
        assert "Remedy: shorten it." in error(browser) and shown(browser) == []
        retype(browser, "#text", "hat")
        until(browser, lambda: shown(browser) == expected("hat", 5))
        assert error(browser) == ""
        retype(browser, "#k", "")
        until(
            browser,
            lambda: "Labels: expected a whole number in 1 … 7, got nothing" in error(browser),
        )
        type_into(browser, "3")
        until(browser, lambda: shown(browser) == expected("hat", 3))
    find(browser, "#text").send_keys("s")
    until(browser, lambda: "The service does not answer" in error(browser))
    assert shown(browser) == []


def error(browser: Any) -> str:
    return find(browser, "#error").text


def test_the_last_text_typed_wins(browser: Any) -> None:
    """An answer that comes late, to a text that is no longer there, is not shown."""
    predictor = Known()
    with serving(predictor, LIMITS) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        predictor.gate.clear()
        type_into(browser, "old")
        until(browser, lambda: predictor.batches == [["old"]])
        type_into(browser, "er")
        predictor.gate.set()
        until(browser, lambda: shown(browser) == expected("older", 5))


def test_unknown_words_are_no_labels(browser: Any, labeler: LabelModel) -> None:
    """A text that the model knows no word of has no labels, and the page says so."""
    with serving(labeler, LIMITS, labels=16) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        type_into(browser, "w1 w2")
        until(browser, lambda: len(shown(browser)) == 5)
        retype(browser, "#text", "☃☃☃")
        until(browser, lambda: "the model knows no word of this text" in status(browser))
        assert shown(browser) == []


def test_markup_is_text(browser: Any) -> None:
    """A text or a title with markup is shown as it is, and runs nowhere."""
    hostile = "<img src=x onerror=alert(1)>"
    with serving(Known(), LIMITS) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        type_into(browser, hostile)
        until(browser, lambda: shown(browser) == expected(hostile, 5))
        assert browser.find_elements("css selector", "#labels img") == []


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"scheme": "light", "width": 1000},
    "dark": {"scheme": "dark", "width": 1000},
    "narrow": {"scheme": "light", "width": 320},
    "narrow dark": {"scheme": "dark", "width": 320},
}


@pytest.mark.parametrize("name", LOOKS)
def test_it_can_be_read_in_every_look(name: str, browser: Any) -> None:
    """Light, dark and narrow: nothing is wider than the window, text stands out by 4.5 to 1."""
    look = LOOKS[name]
    features = [{"name": "prefers-color-scheme", "value": look["scheme"]}]
    size = {"width": look["width"], "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    limits = replace(LIMITS, max_k=7)
    with serving(Known(), limits) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        type_into(browser, "a text with an unusuallylongwordthatnobodyeverwroteintoasinglelabel")
        until(browser, lambda: len(shown(browser)) == 5)
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(wide) == 0
        for selector in (
            "h1",
            "#model",
            "label",
            "#ask",
            ".hint",
            "#status",
            ".title",
            ".uid",
            ".score",
        ):
            assert contrast(browser, selector) >= 4.5, selector
        shoot(browser, name)
        retype(browser, "#k", "")
        until(browser, lambda: error(browser))
        assert contrast(browser, "#error strong") >= 4.5
        shoot(browser, f"{name}, wrong")


def contrast(browser: Any, selector: str) -> float:
    """Ratio of luminances of an element's text and of what lies behind it (WCAG 2, 1.4.3)."""
    script = """
    const element = document.querySelector(arguments[0]);
    let behind = element;
    const clear = (x) => getComputedStyle(x).backgroundColor === "rgba(0, 0, 0, 0)";
    while (clear(behind)) behind = behind.parentElement;
    return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
    """
    lights = sorted(luminance(color) for color in browser.execute_script(script, selector))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(color: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``."""
    parts = color[color.index("(") + 1 : -1].split(",")[:3]
    linear = []
    for part in parts:
        x = float(part) / 255
        linear.append(x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def shoot(browser: Any, name: str) -> None:
    folder = os.environ.get("SHOAL_SHOTS")
    if folder:
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))
