"""The page's source: no way from text to markup, no address, no inline style."""

import re

import pytest

from monet.eval.view import files

PAGE = {name: content.decode() for name, content, _ in files.files()}


def test_the_page_is_complete():
    assert {"index.html", "main.js", "style.css", "views.css"} <= set(PAGE)
    for name, text in PAGE.items():
        for wanted in re.findall(r'from "\./([\w.]+)"|(?:src|href)="([\w.]+)"', text):
            assert (wanted[0] or wanted[1]) in PAGE, f"{name} names a file that does not exist"


@pytest.mark.parametrize("name", [name for name in PAGE if name.endswith(".js")])
def test_no_text_can_become_markup_or_code(name):
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
        "srcdoc",
        "createContextualFragment",
        "setHTML",
        "import(",
    ):
        assert word not in PAGE[name]
    addresses = set(re.findall(r"https?://[^\s\"'`]+", PAGE[name])) - {"http://www.w3.org/2000/svg"}
    assert not addresses, "the page loads nothing from elsewhere"
