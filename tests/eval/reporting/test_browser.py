"""The page in a real browser: no errors, no requests, readable on a telephone and in dark mode."""

import pytest

from monet.eval.reporting import html
from tests.eval.browsers import chromium
from tests.eval.reporting.samples import HOSTILE, NAMES, everything

pytestmark = pytest.mark.slow
SIZES = {"wide": (1600, 1000), "narrow": (400, 800)}

# For a cell of either sign at every share of the full colour, the contrast of its text (WCAG 2: (lighter + .05) /
# (darker + .05)).
CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const luminance = colour => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(
      x => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return ['up', 'down'].flatMap(sign => [...Array(101).keys()].map(share => {
    const cell = document.querySelector(`.cells td.${sign}`);
    cell.style.setProperty('--share', `${share}%`);
    const style = getComputedStyle(cell), a = luminance(style.color), b = luminance(style.backgroundColor);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    (path,) = html.write(everything(), tmp_path_factory.mktemp("page"))
    return path


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def opened(request, browser, file):
    (width, height), scheme = SIZES[request.param[0]], request.param[1]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append("dialog"), dialog.dismiss()))
    page.on("request", lambda sent: told.append(sent.url) if sent.url not in (file.as_uri(), "data:,") else None)
    page.goto(file.as_uri(), wait_until="networkidle")
    yield page, told
    context.close()


def test_the_page_is_quiet_whole_and_fits(opened):
    page, told = opened
    assert told == []
    assert page.locator("table").count() == 12 and page.locator("svg").count() == 4
    assert page.locator("h1").inner_text() == f"Title {HOSTILE}"
    assert page.locator("script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert not page.locator("main dl").first.is_visible()
    page.locator("#provenance summary").first.click()
    assert page.locator("main dl").first.is_visible()


def test_cells_can_be_read(opened):
    page, _ = opened
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) == 202 and min(contrasts) >= 4.5
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('td, th, p, li, dd')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 13
    heights = page.evaluate(
        "[...document.querySelectorAll('.curve svg text')].map(e => e.getBoundingClientRect())"
        ".map(box => Math.max(box.width, box.height)).filter(size => size > 0)"
    )
    assert heights and min(heights) >= 9


def test_headers_stay_in_sight_and_row_and_column_are_marked(opened):
    page, _ = opened
    wide = page.locator("section.table .scroll").first
    wide.evaluate("box => { box.style.maxHeight = '7rem'; box.style.maxWidth = '16rem'; box.scrollTo(200, 90); }")
    page.wait_for_timeout(50)
    corner, box = wide.locator("thead th").first.bounding_box(), wide.bounding_box()
    assert abs(corner["x"] - box["x"]) <= 2 and abs(corner["y"] - box["y"]) <= 2
    cell = page.locator(".cells tbody tr:nth-child(2) td:nth-child(3)").first
    cell.scroll_into_view_if_needed()
    cell.hover()
    marked = page.evaluate(
        "[...document.querySelectorAll('.cells')][0].querySelectorAll('tbody tr').entries().map("
        "([r, row]) => [...row.children].map(e => getComputedStyle(e).backgroundImage != 'none')).toArray()"
    )
    assert marked == [[row == 1 or column == 2 for column in range(7)] for row in range(len(NAMES))]
