"""The page in a real browser: every view, hostile tokens, an ablation, a saved mask, and a page from disk."""

from __future__ import annotations

import json
import threading
import time

import pytest

from monet.eval.ablation.measure import ablate
from monet.eval.attribution.selection import load_masks
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.controls import Controls
from monet.eval.core.inputs import LabelledSequences
from monet.eval.view import static
from monet.eval.view.command import link_file, listening
from monet.eval.view.live import Live
from monet.eval.view.query import Query
from monet.eval.view.visible import visible
from tests.eval.browsers import chromium
from tests.eval.index.conftest import make_data
from tests.eval.view.conftest import EXPLAINED, HOSTILE, LABELS, TOKEN, busiest, make_store

pytestmark = pytest.mark.slow
VIEWS = ["overview", "browse", "expert", "prompt", "compare", "masks"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def place(view_model, view_folder, tmp_path_factory):
    """A running server: its store, its address, and the name of an expert with an explanation."""
    import uvicorn

    from monet.eval.view.api import application

    folder = tmp_path_factory.mktemp("served")
    store = make_store(view_model, view_folder, folder)
    name = busiest(store)
    unit = store.unit(name)
    line = {"group": unit.group, "unit": unit.number, "explanation": EXPLAINED, "explainer": "<i>judge"}
    second = {**line, "explanation": "Another reading", "model": str(folder / "model")}
    (view_folder / "explanations").mkdir(exist_ok=True)
    (view_folder / "explanations" / "a.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(second) + "\n")
    (view_folder / "scores").mkdir(exist_ok=True)
    score = {**line, "scorer": "detection", "score": 0.75, "interval": [0.5, 1.0], "control_permuted": 0.5}
    (view_folder / "scores" / "a.jsonl").write_text(json.dumps(score) + "\n")
    store = make_store(view_model, view_folder, folder)
    with listening(0) as socket:
        app = application(store, Live(view_model, store), TOKEN)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        yield store, f"http://127.0.0.1:{socket.getsockname()[1]}/{TOKEN}/", name
        server.should_exit = True
        thread.join(10)
    for folder in ("explanations", "scores"):
        (view_folder / folder / "a.jsonl").unlink()


def opened(browser, size=(1280, 900), scheme="light"):
    """A page, and what it says on the console or asks from elsewhere."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(20_000)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append("dialog"), dialog.dismiss()))
    page.on(
        "request", lambda sent: sent.url.startswith(("http://127.0.0.1", "file:", "blob:")) or told.append(sent.url)
    )
    return page, told


def addresses(name):
    text = "text=hello"
    remove = "remove=label%3Aleft&ratio=1"
    return [
        "#/",
        "#/browse?sort=-count",
        f"#/expert/{name}",
        f"#/prompt?{text}",
        f"#/compare?{text}&{remove}",
        "#/masks",
    ]


SMALLEST = """() => Math.min(...[...document.querySelectorAll('td, th, p, li, dd')].map(
  one => parseFloat(getComputedStyle(one).fontSize)))"""
READY = {
    "overview": "td .chip",
    "browse": "table.units td a",
    "expert": ".side-column .pair .bars",
    "prompt": ".matrix td.cell",
    "compare": ".next table",
    "masks": "#mask-name",
}


@pytest.mark.parametrize(("size", "scheme"), [((1280, 900), "light"), ((390, 844), "dark")], ids=["wide", "narrow"])
def test_every_view_is_quiet_and_fits(browser, place, size, scheme):
    _, address, name = place
    page, told = opened(browser, size, scheme)
    for view, link in zip(VIEWS, addresses(name), strict=True):
        page.goto(address + link)
        page.locator(READY[view]).first.wait_for()
        assert page.locator(".error").count() == 0, page.locator(".error").first.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{view} scrolls sideways"
        assert page.evaluate(SMALLEST) >= 12
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    assert dark == (scheme == "dark")
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("t")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    assert told == []


def test_hostile_text_is_displayed_and_never_executed(browser, place):
    store, address, name = place
    page, told = opened(browser)
    page.goto(f"{address}#/expert/{name}")
    page.locator(".t.on").first.wait_for()
    context = store.expert(store.unit(name))["contexts"][0]
    # an empty token and line breaks have marks
    wanted = "".join({"": "", "\n": "↵", "\t": "⇥ "}.get(text, visible(text)) for text in context["tokens"])
    assert page.locator(".contexts .tokens").first.inner_text().replace("∅", "").strip("…") == wanted
    assert page.locator(".explanations p").first.inner_text() == EXPLAINED
    assert "detection 0.75 (0.5 to 1; another explanation 0.5)" in page.locator(".explanations").inner_text()
    page.goto(f"{address}#/browse?sort=-detection")
    assert "detection 0.75" in page.locator("table.units tbody tr").first.inner_text()
    for view, link in zip(VIEWS, addresses(name), strict=True):
        page.goto(address + link)
        page.locator(READY[view]).first.wait_for()
        assert page.evaluate("window.bad") is None
        assert page.locator("main script, main img, main b:not(.score b, .view-masks b), main i").count() == 0
        assert not {"\u202e", "\x00", "\u2028"} & set(page.locator("body").inner_text())
    page.goto(f"{address}#/browse?token={HOSTILE[0].replace('/', '%2F')}")
    page.locator("table.units td a").first.wait_for()
    assert HOSTILE[0] in page.locator(".chip").all_inner_texts()
    page.goto(f"{address}#/<img src=x onerror=window.bad=1>")
    page.locator(".error").wait_for()
    assert page.evaluate("window.bad") is None and told == []


def test_keys_and_deep_links(browser, place):
    _, address, _ = place
    page, told = opened(browser)
    page.goto(f"{address}#/browse?sort=-count&min.count=2")
    page.locator("table.units td a").first.wait_for()
    names = page.locator("table.units td.name a").all_inner_texts()
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("x")
    assert page.locator(".badge").inner_text() == "1"
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/#/expert/{names[1]}")
    page.locator(".title .collect[aria-pressed=true]").wait_for()
    page.keyboard.press("x")
    assert page.locator(".badge").is_hidden()
    page.keyboard.press("n")
    page.wait_for_function("name => !location.hash.endsWith(name)", arg=names[1])
    page.go_back()
    page.go_back()
    page.locator("table.units td a").first.wait_for()
    assert page.locator("table.units td.name a").all_inner_texts() == names
    page.keyboard.press("/")
    page.keyboard.type("t2")
    page.wait_for_url("**token=t2**")
    page.locator("table.units td a").first.wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("m")
    page.wait_for_url("**/#/masks")
    page.goto(f"{address}#/expert/7:1")
    assert "groups 0 to 1" in page.locator(".error").inner_text()
    assert [line for line in told if "400" not in line] == []


def test_an_ablation_side_by_side(browser, place):
    store, address, _ = place
    page, told = opened(browser)
    page.goto(f"{address}#/compare")
    page.locator("textarea").fill("hello world")
    page.locator("select").select_option("label:left")
    page.get_by_label("Ratio to second label").fill("1")
    page.keyboard.press("Control+Enter")
    page.locator(".next table").first.wait_for()
    count = len(store.browser.rows(Query.of({"label": "left", "min.label_ratio": "1"})))
    page.locator(".ask").get_by_text(f"removes {count} experts").wait_for()
    before, after, _ = page.locator(".facts dd").all_inner_texts()
    assert before.split()[0] != after.split()[0]
    page.locator(".pick").nth(3).click()
    assert page.locator(".pick[aria-selected=true]").count() == 1
    page.get_by_label("New tokens").fill("5")
    page.get_by_role("button", name="Continue the text").click()
    page.get_by_text("5 tokens", exact=True).wait_for()
    both = page.locator(".written").all_inner_texts()
    assert len(both) == 2 and all(text.startswith("hello world") and len(text) > 11 for text in both)
    assert told == []


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(browser, place):
    store, address, _ = place
    page, _ = opened(browser)
    held = []
    page.route("**/collection", lambda route: held.append(route))
    page.goto(f"{address}#/compare?remove=label:left&ratio=2")
    ratio = page.get_by_label("Ratio to second label")
    with page.expect_request(lambda one: '"1"' in (one.post_data or "")):
        ratio.fill("1")
    count = len(store.browser.rows(Query.of({"label": "left", "min.label_ratio": "1"})))
    answers = [route.fetch() for route in held]
    for route, answer in reversed(list(zip(held, answers, strict=True))):
        with page.expect_response("**/collection"):
            route.fulfill(response=answer)
    assert len(held) == 2
    page.wait_for_timeout(100)  # the page has no sign that it dropped an answer
    page.locator(".ask").get_by_text(f"removes {count} experts").wait_for()


def test_a_collected_mask_is_saved_and_accepted(browser, place, view_model, tmp_path):
    store, address, name = place
    page, told = opened(browser)
    page.goto(f"{address}#/browse?label=left&min.label_ratio=1")
    page.get_by_role("button", name="collect all").click()
    page.goto(f"{address}#/expert/{name}")
    page.locator(".title .collect").click()
    page.goto(f"{address}#/masks")
    page.get_by_text("What it removes").wait_for()
    page.locator("#mask-name").fill("from-browser")
    page.locator("#mask-label").select_option("left")
    page.get_by_role("button", name="Save the mask").click()
    page.get_by_text("monet ablate --model").wait_for()
    folder = store.masks.out / "from-browser"
    masks = load_masks(folder, view_model)
    assert masks["left"].num_removed > 1
    page.get_by_role("button", name="Empty it").click()
    page.get_by_label("names of experts").fill("0:3, 1:i2")
    page.get_by_role("button", name="Add").first.click()
    page.get_by_role("button", name="Save the mask").click()
    page.get_by_role("button", name="Keep it").click()
    assert load_masks(folder) == masks
    page.get_by_role("button", name="Save the mask").click()
    page.get_by_role("button", name="Replace").click()
    page.get_by_text("Saved: 17 experts").wait_for()
    (mask,) = load_masks(folder, view_model).values()
    assert mask.num_removed == 17 and told == []
    data = make_data()
    other = LabelledSequences(LABELS, data.sequences, data.label_of, documents=[str(n) for n in range(40)])
    result = ablate(
        view_model, load_masks(folder, view_model), other, out=tmp_path / "ablation", controls=Controls(count=2),
        bootstrap=Bootstrap(resamples=1000), progress=False,
    )  # fmt: skip
    assert result is not None and (tmp_path / "ablation" / "result.json").is_file()


def test_another_site_changes_nothing(browser, place):
    store, address, _ = place
    page, _ = opened(browser)
    before = list(store.masks.names)
    page.goto("about:blank")
    attack = """async address => {
      const body = JSON.stringify({name: "stolen", label: "left", collection: {add: ["0:1"]}});
      const found = [];
      for (const type of ["text/plain", "application/json"]) for (const mode of ["no-cors", "cors"])
        try {
          const headers = {"Content-Type": type};
          found.push(await (await fetch(address + "api/masks", {method: "POST", mode, body, headers})).text());
        } catch { found.push(""); }
      try { found.push(await (await fetch(address + "api/info")).text()); } catch { found.push(""); }
      return found;
    }"""
    assert set(page.evaluate(attack, address)) == {""}
    assert store.masks.names == before and not (store.masks.out / "stolen").exists()


def test_the_file_that_leads_to_the_page(browser, place):
    """Only its owner can read it, and the page's guard lets the browser in."""
    _, address, _ = place
    with link_file(address) as path:
        assert path.parent.stat().st_mode & 0o077 == 0
        page, told = opened(browser)
        page.goto(path.as_uri())
        page.wait_for_url(f"{address}*")
        page.locator("h1").first.wait_for()
    assert told == [] and not path.exists()


def test_a_static_page_opens_from_disk(browser, place, view_model, tmp_path):
    store, _, name = place
    out = tmp_path / "page"
    static.write(store, view_model, out, static.Wanted(experts=f"{name},0:i1,1:7,0:3", progress=False))
    for size, scheme in (((1280, 900), "light"), ((390, 844), "dark")):
        page, told = opened(browser, size, scheme)
        began = time.monotonic()
        page.goto(f"{(out / 'index.html').as_uri()}#/expert/{name}")
        page.locator(".contexts li").first.wait_for()
        assert time.monotonic() - began < 10
        assert page.locator(".t.on").count() > 0 and page.locator(".side-column .pair .bars").count() == 2
        assert page.locator(".explanations p").first.inner_text() == EXPLAINED
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.goto(f"{(out / 'index.html').as_uri()}#/browse?kind=all&sort=unit")
        page.locator("table.units td a").first.wait_for()
        assert page.locator("table.units td.name a").all_inner_texts() == [
            store.columns.unit(row).name
            for row in sorted(store.columns.row(store.unit(one)) for one in (name, "0:i1", "1:7", "0:3"))
        ]
        page.goto(f"{(out / 'index.html').as_uri()}#/browse?explanation=another&sort=-count")
        page.locator(".summary", has_text="1–1 of 1").wait_for()
        for view in ("overview", "prompt", "masks"):
            page.goto(f"{(out / 'index.html').as_uri()}#/{view}")
            page.locator("h1").wait_for()
        assert page.evaluate("window.bad") is None and told == []
    (out / "data" / "shard-0.js").unlink()
    page.goto(f"{(out / 'index.html').as_uri()}#/expert/{name}")
    page.reload()
    assert "Copy the whole folder" in page.locator(".error").inner_text()
