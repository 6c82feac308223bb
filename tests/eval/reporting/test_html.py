"""The page as text: it is complete and self-contained, and no name becomes markup. `test_browser.py` opens it."""

import re
from html.parser import HTMLParser

import pytest

from monet.eval.reporting import common, html
from tests.eval.reporting.samples import HOSTILE, NAMES, everything

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Tags with their attributes, text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def source() -> str:
    return html.render(everything())


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def test_nothing_is_fetched_and_nothing_runs(source, page):
    assert not page.all("script") and not page.all("img") and not page.all("iframe") and not page.all("object")
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")], tag
        assert attributes.get("href", "#").startswith("#") or tag == "link"
    assert not re.search(r"(?:https?:)?//|@import|url\((?!#)", source)
    assert "default-src 'none'" in next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert len(source) < 1_000_000


def test_every_block_is_there(page):
    report = everything()
    assert report.title in page.text and report.summary in page.text
    for block in report.blocks:
        assert block.title in page.text and getattr(block, "note", "") in page.text
    assert "Its second paragraph." in page.text
    # the cells of three heat maps, the tables, the folded intervals and the numbers of the plots
    assert len(page.all("table")) == 3 + 2 + 3 + 4
    assert len(page.all("svg")) == 4
    assert (
        page.text.count("not measured") == 0
        and sum(cell.get("title") == "not measured" for cell in page.all("td")) == 6
    )
    assert "parts" in page.text and "evaluate" in page.text


def test_names_are_shown_and_never_become_markup(page):
    assert page.text.count(HOSTILE) > 20
    assert all(name in page.text for name in NAMES if "\x00" not in name)
    assert "\x00" not in page.text and "\x1b" not in page.text and "naïve 日本 \ufffd[31m\ufffd" in page.text


def test_the_contents_lead_to_every_titled_block(page):
    targets = [link["href"][1:] for link in page.all("a")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(targets) == len(set(targets)) == sum(bool(block.title) for block in everything().blocks) + 1
    assert set(targets) <= set(ids)
    assert len(ids) == len(set(ids)), "an id occurs twice"


def test_figures_can_be_read_out_and_follow_the_page(page, source):
    for drawing in page.all("svg"):
        assert drawing["role"] == "img" and drawing["aria-label"]
    assert "currentColor" in source and "#010203" not in source
    for reference in re.findall(r'(?:url\(|href=")#([^")]+)', source):
        assert f'id="{reference}"' in source, reference


def test_cells_are_coloured_from_zero_by_their_sign(page):
    cells = [cell for cell in page.all("td") if cell.get("class", "").split(" ")[0] in ("up", "down", "none")]
    assert {"up own", "down", "none"} <= {cell["class"] for cell in cells}
    shares = {cell["style"] for cell in cells if re.search(r": [+-]0\.000", cell["title"])}
    assert shares == {"--share: 0%"}
    assert {cell["style"] for cell in cells if "own" in cell["class"].split()} == {"--share: 100%"}


def test_equal_reports_are_equal_pages():
    assert html.render(everything()) == html.render(everything())


@pytest.mark.parametrize(
    "value, wanted", [(0.0, "+0.00"), (-0.0, "+0.00"), (-0.001, "-0.00"), (1.0, "+1.00"), (-1.0, "-1.00")]
)
def test_signed_numbers_keep_the_sign_of_what_rounds_to_zero(value, wanted):
    assert common.signed(value, 2) == wanted


@pytest.mark.parametrize("limit, digits", [(0.01, 3), (0.1, 2), (5.5, 2), (30.6, 1), (250.0, 0)])
def test_decimals_fit_the_largest_value(limit, digits):
    assert common.digits_for(limit) == digits
