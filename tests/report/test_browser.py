"""The page in a real browser, from disk and offline: it draws, answers and stays quiet."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report_worlds import HOSTILE, TILE

from memdesc.report.build import ReportData
from memdesc.report.hilbert import curve
from memdesc.report.render import render

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

SIDE = 64
"""Cells on a side of a tile; a cell is one frame in these worlds."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium that talks to nobody."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install --group dev"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    quiet = ("background-networking", "component-update", "sync", "gpu")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)],
        )
        yield started
        started.close()


class Opened:
    """A report open in the browser, with everything it complained about."""

    def __init__(self, browser: Browser, path: Path, width: int, scheme: str, *, script: bool):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
            offline=True,
            java_script_enabled=script,
        )
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        if script:
            self.page.wait_for_selector("html[data-ready]")
            self.page.locator("#canvas").scroll_into_view_if_needed()

    def place(self, tile: int, x: int, y: int) -> tuple[float, float]:
        """Where on the screen column `x` and row `y` of a tile are."""
        data = self.page.evaluate("({...document.getElementById('canvas').dataset})")
        cell, gap, columns = (int(data[name]) for name in ("cell", "gap", "columns"))
        box = self.page.locator("#canvas").bounding_box()
        assert box is not None
        pitch = SIDE * cell + gap
        left = int(data["gutter"]) + tile % columns * pitch + (x + 0.5) * cell
        return box["x"] + left, box["y"] + tile // columns * pitch + (y + 0.5) * cell

    def colour(self, tile: int, x: int, y: int) -> str:
        """The colour of a cell on the canvas, as #rrggbb."""
        box = self.page.locator("#canvas").bounding_box()
        assert box is not None
        left, top = self.place(tile, x, y)
        return self.page.evaluate(
            """([x, y]) => {
                const copy = new OffscreenCanvas(1, 1);
                const context = copy.getContext("2d", { willReadFrequently: true });
                const canvas = document.getElementById("canvas");
                context.drawImage(canvas, -Math.floor(x), -Math.floor(y));
                return "#" + [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
                    .map((value) => value.toString(16).padStart(2, "0")).join("");
            }""",
            [left - box["x"], top - box["y"]],
        )

    def variable(self, name: str, kind: str = "html") -> str:
        return self.page.evaluate(
            "([kind, name]) => getComputedStyle(document.querySelector(kind))"
            ".getPropertyValue(name).trim()",
            [kind, name],
        )


@pytest.fixture
def opened(browser: Browser, data: ReportData, tmp_path: Path) -> Iterator[Opened]:
    yield from open_page(browser, data, tmp_path)


def open_page(
    browser: Browser,
    data: ReportData,
    folder: Path,
    *,
    width: int = 1280,
    scheme: str = "light",
    script: bool = True,
) -> Iterator[Opened]:
    path = folder / "report.html"
    path.write_bytes(render(data))
    opened = Opened(browser, path, width, scheme, script=script)
    yield opened
    opened.context.close()
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_it_opens_offline_and_stays_quiet(opened: Opened) -> None:
    assert opened.page.locator("#canvas").is_visible()
    assert not opened.page.locator("#still").is_visible()
    assert opened.page.title() == "testhost: memory by type"


@pytest.mark.parametrize(("tile", "kind"), [(0, "free memory"), (1, "anonymous memory")])
def test_the_pointer_finds_frames(opened: Opened, tile: int, kind: str) -> None:
    x, y = curve(6)
    for step in (0, 1000, TILE - 1):
        opened.page.mouse.move(*opened.place(tile, int(x[step]), int(y[step])))
        tip = opened.page.locator("#tip")
        assert tip.locator(".title").text_content() == kind
        pfn = tile * TILE + step
        assert f"{pfn:#x}\u2013{pfn:#x}" in (tip.text_content() or "")
        assert f"{pfn * 4096:#x}" in (tip.text_content() or "")
        assert ("DMA", "Normal")[tile > 0] in (tip.text_content() or "")
    opened.page.mouse.move(5, 5)
    assert not opened.page.locator("#tip").is_visible()


def test_the_line_layout_finds_frames(opened: Opened) -> None:
    opened.page.get_by_role("button", name="Linear").click()
    columns = int(opened.page.locator("#canvas").get_attribute("data-columns") or 0)
    wide = columns * SIDE
    pfn = TILE + 5 * wide + 3
    row, column = divmod(pfn, wide)
    tile, x, y = row // SIDE * columns + column // SIDE, column % SIDE, row % SIDE
    opened.page.mouse.move(*opened.place(tile, x, y))
    assert f"{pfn:#x}\u2013" in (opened.page.locator("#tip").text_content() or "")


def test_cells_have_the_colours_of_the_legend(opened: Opened, data: ReportData) -> None:
    names = [kind.names for kind in data.types]
    for tile, kind in ((0, "free"), (1, "anon"), (3, "hole")):
        number = names.index([kind])
        assert opened.colour(tile, 30, 30) == opened.variable("--c", f".t{number}")


def test_the_legend_shows_one_type(opened: Opened, data: ReportData) -> None:
    button = opened.page.locator("#types button", has_text="anonymous memory")
    before = opened.colour(0, 30, 30)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    number = [kind.names for kind in data.types].index(["anon"])
    assert opened.colour(1, 30, 30) == opened.variable("--c", f".t{number}")
    assert opened.colour(0, 30, 30) == opened.variable("--wash")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert opened.colour(0, 30, 30) == before
    opened.page.locator("#zones button", has_text="DMA").click()
    assert opened.colour(0, 30, 30) == before


def test_the_keyboard_alone_is_enough(opened: Opened) -> None:
    page, live = opened.page, opened.page.locator("#live")
    page.locator("#canvas").focus()
    page.keyboard.press("Home")
    assert "frames 0x0 to 0x0" in (live.text_content() or "")
    page.keyboard.press("PageDown")
    page.keyboard.press("Shift+PageDown")
    assert "frames 0x9 to 0x9" in (live.text_content() or "")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    x, y = curve(6)
    step = next(i for i in range(TILE) if (x[i], y[i]) == (1, 0))
    assert f"frames {step:#x} to" in (live.text_content() or "")
    page.keyboard.press("Enter")
    assert f"memdesc what {step:#x}" in (page.locator("#tip").text_content() or "")
    page.keyboard.press("+")
    assert "zoomed" in (page.locator("#canvas").get_attribute("class") or "")
    page.keyboard.press("Escape")
    assert "zoomed" not in (page.locator("#canvas").get_attribute("class") or "")
    assert not page.locator("#tip").is_visible()


def test_zoom_keeps_what_is_under_the_pointer(opened: Opened) -> None:
    place = opened.place(1, 20, 20)
    opened.page.mouse.move(*place)
    before = opened.page.locator("#tip dd").first.text_content()
    opened.page.mouse.dblclick(*place)
    opened.page.mouse.move(place[0] + 1, place[1])
    opened.page.mouse.move(*place)
    assert opened.page.locator("#tip dd").first.text_content() == before


def test_tables_sort(opened: Opened) -> None:
    table = opened.page.locator("#ledger-table")

    def frames() -> list[int]:
        cells = table.locator("tbody tr td:last-child")
        return [int(text.replace(",", "")) for text in cells.all_text_contents()]

    button = table.get_by_role("button", name="Frames")
    head = table.get_by_role("columnheader", name="Frames")
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert frames() == sorted(frames(), reverse=True)
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert frames() == sorted(frames())
    assert table.locator("th[aria-sort]").count() == 1


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_width(
    browser: Browser, data: ReportData, tmp_path: Path, width: int, scheme: str
) -> None:
    for opened in open_page(browser, data, tmp_path, width=width, scheme=scheme):
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(19, 21, 24)" if scheme == "dark" else "rgb(253, 253, 252)")
        opened.page.mouse.move(*opened.place(1, 30, 30))
        box = opened.page.locator("#tip").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_a_change_of_theme_repaints(opened: Opened) -> None:
    before = opened.colour(1, 30, 30)
    opened.page.emulate_media(color_scheme="dark")
    assert opened.colour(1, 30, 30) != before


def test_hostile_names_run_nothing(browser: Browser, hostile: ReportData, tmp_path: Path) -> None:
    for opened in open_page(browser, hostile, tmp_path):
        opened.page.mouse.move(*opened.place(1, 30, 30))
        opened.page.locator("#zones button").first.click()
        text = opened.page.locator("h1").text_content() or ""
        assert HOSTILE[0] in text
        assert opened.page.locator("img").count() == 1
        assert opened.page.locator("[onmouseover], [onerror]").count() == 0
        opened.page.set_viewport_size({"width": 360, "height": 800})
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_script_the_picture_and_the_tables_are_there(
    browser: Browser, data: ReportData, tmp_path: Path
) -> None:
    for opened in open_page(browser, data, tmp_path, script=False):
        image = opened.page.locator("#still img")
        assert image.is_visible()
        box = image.bounding_box()
        assert box is not None
        assert box["height"] > 200
        assert not opened.page.locator("#canvas").is_visible()
        assert not opened.page.locator("#tools").is_visible()
        assert opened.page.locator("#ledger-table tbody tr").count() == len(data.ledger.rows)
