"""A browser without a window, that goes to pages, clicks, and takes pictures of what is there."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

WIDTH, HEIGHT = 1280, 860
# Of waiting for a page; a busy machine is slow.
PATIENCE = 90.0
_COLOURS = 192


class Unseen(AssertionError):
    """Something that a page should show is not there."""


@dataclass
class Browser:
    """Chromium, driven.

    Attributes:
        driver: Selenium's.
    """

    driver: Chrome

    def go(self, address: str) -> None:
        """Open a page."""
        self.driver.get(address)

    def text(self) -> str:
        """Return what the page shows, in frames too."""
        shown = self._body()
        for frame in self.driver.find_elements(By.TAG_NAME, "iframe"):
            with suppress(WebDriverException):
                self.driver.switch_to.frame(frame)
                shown += "\n" + self._body()
            self.driver.switch_to.default_content()
        return shown

    def _body(self) -> str:
        return str(self.driver.execute_script("return document.body ? document.body.innerText : ''"))

    def sees(self, *words: str, patience: float = PATIENCE) -> None:
        """Wait until the page shows all of them.

        Args:
            words: In any case.
            patience: Seconds.

        Raises:
            Unseen: If it does not.
        """
        end, shown = time.monotonic() + patience, ""
        while time.monotonic() < end:
            with suppress(WebDriverException):
                shown = self.text()
                if all(word.lower() in shown.lower() for word in words):
                    return
            time.sleep(0.5)
        lacking = [word for word in words if word.lower() not in shown.lower()]
        raise Unseen(f"{self.driver.current_url} does not show {lacking}, but:\n{shown[:3000]}")

    def click(self, words: str, within: str = "*") -> None:
        """Click on what has just these words.

        Args:
            words: All that it shows.
            within: Tag of what is clicked.

        Raises:
            Unseen: If there is no such thing.
        """
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for found in reversed(self.driver.find_elements(By.XPATH, f'//{within}[normalize-space(.)="{words}"]')):
                with suppress(WebDriverException):
                    self._press(found)
                    return
            time.sleep(0.5)
        raise Unseen(f"{self.driver.current_url} has nothing to click that says {words!r}:\n{self.text()[:3000]}")

    def press(self, selector: str, patience: float = PATIENCE) -> None:
        """Click on the first thing that a CSS selector finds.

        Raises:
            Unseen: If there is none.
        """
        self._find(selector, patience)
        self.driver.execute_script("document.querySelector(arguments[0]).click()", selector)

    def type(self, selector: str, words: str) -> None:
        """Write into the field that a CSS selector finds.

        Raises:
            Unseen: If there is none.
        """
        self._find(selector, PATIENCE).send_keys(words)

    def _find(self, selector: str, patience: float) -> WebElement:
        end = time.monotonic() + patience
        while time.monotonic() < end:
            for found in self.driver.find_elements(By.CSS_SELECTOR, selector):
                return found
            time.sleep(0.5)
        raise Unseen(f"{self.driver.current_url} has no {selector}")

    def resize(self, width: int, height: int) -> None:
        """Give the window another size, in pixels."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def _press(self, element: WebElement) -> None:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def picture(self, path: Path, settle: float = 2.0) -> None:
        """Take a picture of the window, no wider than others and with few enough colours to be small."""
        time.sleep(settle)
        shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        if shot.width > WIDTH:
            shot = shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS)
        shot.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def opened() -> Iterator[Browser]:
    """Start Chromium; it ends with the block."""
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-gpu"):
        options.add_argument(option)
    options.add_argument(f"--window-size={WIDTH},{HEIGHT}")
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver") or "chromedriver"))
    try:
        browser = Browser(driver)
        browser.resize(WIDTH, HEIGHT)
        yield browser
    finally:
        driver.quit()
