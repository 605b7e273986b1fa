"""A report in a real browser: Chromium without a window, driven by its own driver.

    python -m pytest tests/images/test_report_browser.py

The image makes the report, as a user would; Debian's chromium and chromium-driver look at it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HOME = Path(__file__).resolve().parents[2]
webdriver = pytest.importorskip("selenium.webdriver")
if sys.version_info < (3, 11):
    pytest.skip("the recipes' library is written for Python 3.11", allow_module_level=True)

sys.path[:0] = [str(HOME / "recipes"), str(HOME / "tests" / "recipes")]

from report_records import HOSTILE, write_all, write_hostile  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "no Chromium and its driver; as root: sh tests/images/packages.sh"
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason=MISSING)
PHONE, DESKTOP = 390, 1280
PAPER = 688  # A4 without the margins of report.css
SMALLEST = 11  # pixels of a table's text on a phone


class Shades(NamedTuple):
    """Of a screenshot's pixels: mean and extremes of their green, and the share of those that are
    far from the usual one.
    """

    mean: float
    darkest: int
    lightest: int
    unusual: float


class Page:
    """A report in the browser."""

    def __init__(self, driver: Any, file: Path) -> None:
        self.driver = driver
        self.file = file

    def show(self, width: int, dark: bool = False) -> None:
        """Load it anew in a window of this width."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tell("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(self.file.as_uri())

    def tell(self, command: str, parameters: dict[str, Any]) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def ask(self, script: str, *arguments: object) -> Any:
        """What a script finds in the page."""
        return self.driver.execute_script(script, *arguments)

    def shades(self) -> Shades:
        """A screenshot's pixels, which the browser itself decodes."""
        png = self.driver.get_screenshot_as_base64()
        self.driver.get("about:blank")
        return Shades(*self.driver.execute_async_script(PIXELS, png))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("a report; 'x' ü")
    write_all(made / "runs")
    write_hostile(made / "runs" / "hostile")
    return made


@pytest.fixture(scope="module")
def report(folder: Path, cpu_image: Path) -> Path:
    command = [str(HOME / "bin" / "llm-run"), "--image", str(cpu_image), "--launch=local"]
    recipe = str(HOME / "recipes" / "evaluate" / "report.py")
    command += ["python", recipe, "--run", "runs", "--output", "report", "--title", "Räport <b>"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def page(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.add_argument("--headless=new")
    options.add_argument("--hide-scrollbars")
    options.add_argument("--disable-dev-shm-usage")  # it may be small in containers
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to be root with one
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options, service)
    try:
        yield Page(driver, report)
    finally:
        driver.quit()


def test_nothing_is_loaded_and_nothing_is_complained_about(page: Page) -> None:
    page.show(DESKTOP)
    assert page.driver.get_log("browser") == []
    assert page.ask("return document.compatMode") == "CSS1Compat"
    logged = [
        json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")
    ]
    asked = [
        entry["params"]["request"]["url"]
        for entry in logged
        # Chromium's own pages ask for things, too
        if entry["method"] == "Network.requestWillBeSent"
        and entry["params"]["documentURL"] == page.file.as_uri()
    ]
    assert asked == [page.file.as_uri()]
    assert page.ask("return performance.getEntriesByType('resource').length") == 0
    assert page.ask("return document.scripts.length") == 0


def test_hostile_texts_are_texts(page: Page) -> None:
    page.show(DESKTOP)
    assert page.driver.title == "Räport <b>"
    assert (
        page.ask("return document.querySelectorAll('script, iframe, img, object, b').length") == 0
    )
    assert page.ask("return window.pwned === undefined")
    shown = page.ask("return document.body.textContent")
    assert HOSTILE[0] in shown


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_all_of_it(page: Page, dark: bool) -> None:
    page.show(PHONE, dark)
    assert page.ask("return innerWidth") == PHONE
    wide = page.ask("return document.documentElement.scrollWidth")
    assert wide <= PHONE, "the page scrolls sideways"
    sizes = page.ask(
        "return [...document.querySelectorAll('td, th, svg text, dd, pre')].map("
        "cell => parseFloat(getComputedStyle(cell).fontSize))"
    )
    assert len(sizes) > 500
    assert min(sizes) >= SMALLEST
    # what sticks out of its table's own frame can be scrolled to
    assert page.ask(
        "return [...document.querySelectorAll('table')].every(table => {"
        " const frame = table.closest('.scroll');"
        " return frame && (table.offsetWidth <= frame.clientWidth"
        "  || ['auto', 'scroll'].includes(getComputedStyle(frame).overflowX)); })"
    )
    # the first column stays, and leaves room for the others
    widest = page.ask(
        "return Math.max(...[...document.querySelectorAll('tbody th')].map(h => h.offsetWidth))"
    )
    assert widest < PHONE / 2


def test_light_and_dark_differ_and_can_be_read(page: Page) -> None:
    means = []
    for dark in (False, True):
        page.show(DESKTOP, dark)
        shades = page.shades()
        assert shades.lightest - shades.darkest > 150, "nothing stands out"
        assert 0.01 < shades.unusual < 0.5, "blank, or a mess"
        means.append(shades.mean)
    assert means[0] > 200 and means[1] < 90
    for dark in (False, True):
        page.show(DESKTOP, dark)
        page.ask("document.querySelectorAll('details').forEach(part => part.open = true)")
        faint = page.ask(CONTRAST)
        assert not faint, faint[:5]


def test_pictures_are_drawn_with_readable_labels(page: Page) -> None:
    page.show(PHONE)
    drawn = page.ask(
        "return [...document.querySelectorAll('figure svg[role=img]')].map(svg => ["
        " svg.getAttribute('aria-label'), svg.querySelectorAll('polyline, circle, path').length,"
        " svg.getBoundingClientRect().width, svg.getBoundingClientRect().height])"
    )
    assert len(drawn) >= 5
    for label, marks, width, height in drawn:
        assert label and marks and width > 200 and height > 150
    outside = page.ask(
        "return [...document.querySelectorAll('figure svg text')].filter(text => {"
        " const box = text.getBoundingClientRect();"
        " return box.left < 0 || box.right > innerWidth; }).map(text => text.textContent)"
    )
    assert outside == []


def test_links_lead_to_the_records(page: Page, folder: Path) -> None:
    page.show(DESKTOP)
    links = page.ask("return [...document.querySelectorAll('dd a')].map(a => a.href)")
    assert len(links) > 30
    assert all(link.startswith("file:///") for link in links)
    names = page.ask(
        "return [...document.querySelectorAll('dd a')].map(a => decodeURIComponent("
        "new URL(a.href).pathname))"
    )
    assert all(Path(name).is_file() for name in names)
    assert str(folder / "runs" / "failed" / "job 4711.log") in names


def test_a_run_in_the_table_leads_to_all_of_it(page: Page) -> None:
    page.show(DESKTOP)
    page.ask("document.querySelector('#runs tbody a').click()")
    assert page.ask("return document.querySelector('#runs details').open")


def test_it_prints_on_several_pages_with_all_that_is_folded(page: Page, tmp_path: Path) -> None:
    page.show(DESKTOP, dark=True)
    options = {"printBackground": False, "preferCSSPageSize": True}
    data = base64.b64decode(page.tell("Page.printToPDF", options)["data"])
    assert data.startswith(b"%PDF")
    pages = data.count(b"/Type /Page") - data.count(b"/Type /Pages")
    assert pages >= 5
    page.tell("Emulation.setEmulatedMedia", {"media": "print"})
    folded = page.ask(
        "return [...document.querySelectorAll('details dl')].map(part => part.offsetHeight)"
    )
    assert folded and min(folded) > 0
    assert page.ask("return getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    size = {"width": PAPER, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.tell("Emulation.setDeviceMetricsOverride", size)
    cut = page.ask(
        "return [...document.querySelectorAll('table')].filter("
        "table => table.offsetWidth > table.closest('.scroll').clientWidth"
        ").map(table => table.caption.textContent)"
    )
    assert cut == []


PIXELS = """
const [png, done] = arguments;
const picture = new Image();
picture.onload = () => {
  const canvas = new OffscreenCanvas(picture.width, picture.height).getContext('2d');
  canvas.drawImage(picture, 0, 0);
  const counts = new Array(256).fill(0);
  const data = canvas.getImageData(0, 0, picture.width, picture.height).data;
  for (let n = 1; n < data.length; n += 4) counts[data[n]]++;
  const pixels = data.length / 4, usual = counts.indexOf(Math.max(...counts));
  const sum = weigh => counts.reduce((total, count, shade) => total + count * weigh(shade), 0);
  done([sum(shade => shade) / pixels, counts.findIndex(count => count),
    counts.findLastIndex(count => count), sum(shade => Math.abs(shade - usual) > 60) / pixels]);
};
picture.src = 'data:image/png;base64,' + png;
"""

# Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, success criterion 1.4.3).
CONTRAST = """
function light(text) {
  const parts = text.match(/[\\d.]+/g).map(Number);
  if (parts.length > 3 && parts[3] === 0) return null;
  const linear = parts.slice(0, 3).map(part => part / 255).map(
    part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
function behind(node) {
  for (; node; node = node.parentElement) {
    const found = light(getComputedStyle(node).backgroundColor);
    if (found !== null) return found;
  }
  return 1;
}
const faint = [];
for (const node of document.querySelectorAll('body *:not(svg *)')) {
  const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !node.offsetParent) continue;
  const [ink, page] = [light(getComputedStyle(node).color), behind(node)];
  const contrast = (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
  if (contrast < 4.5) faint.push([node.tagName, node.className, contrast.toFixed(2),
    node.textContent.slice(0, 40)]);
}
return faint;
"""
