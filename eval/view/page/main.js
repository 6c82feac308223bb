// The frame around the views: address, navigation, keys, errors.

import { browse } from "./browse.js";
import * as collection from "./collection.js";
import { compare } from "./compare.js";
import { append, busy, h, link, notice, replace } from "./dom.js";
import { expert } from "./expert.js";
import { count } from "./format.js";
import { helpWindow, listen } from "./keys.js";
import { overview } from "./overview.js";
import { prompt } from "./prompt.js";
import { expertLink, href, parse } from "./router.js";
import { openSource } from "./source.js";
import * as theme from "./theme.js";
import { workshop } from "./workshop.js";

const VIEWS = { overview, browse, expert, prompt, compare, masks: workshop };
const TABS = [["overview", "Overview"], ["browse", "Experts"], ["prompt", "Prompt"], ["compare", "Compare"], ["masks", "Masks"]];
const root = document.getElementById("main");
const source = openSource();
let info;
let drawn = 0;
let rows = [];
let row = -1;
let around = {};

function header() {
  const tabs = TABS.map(([view, text]) => link(href(view), { "data-view": view }, text, view === "masks" && h("span", { class: "badge", hidden: true })));
  const name = h("input", { id: "go", placeholder: "go to 0:17", "aria-label": "name of an expert, such as 0:17", autocomplete: "off", spellcheck: "false", size: 10 });
  const go = h("form", { class: "go", onsubmit: (event) => (event.preventDefault(), name.value.trim() && (location.hash = expertLink(name.value.trim())), name.blur(), (name.value = "")) }, name);
  const dialog = helpWindow();
  const look = h("button", { type: "button", class: "icon", title: "light, dark, or the system's colours (t)", "aria-label": "colours", onclick: () => turn() }, "◐");
  const turn = () => (look.title = `colours: ${theme.turn()} (t)`);
  append(document.getElementById("top"), [
    link(href("overview"), { class: "brand", title: info.name }, h("span", { class: "brand-mark", "aria-hidden": "true" }), "Monet"),
    h("nav", { class: "tabs-main", "aria-label": "views" }, tabs),
    h("div", { class: "tools" }, go, look, h("button", { type: "button", class: "icon", title: "keys (?)", "aria-label": "keys", onclick: () => dialog.showModal() }, "?")),
  ]);
  document.body.append(dialog);
  const badge = document.querySelector(".badge");
  const showSize = () => {
    badge.textContent = count(collection.size());
    badge.hidden = collection.size() === 0;
  };
  collection.onChange(showSize);
  showSize();
  const to = (view) => () => (location.hash = href(view));
  const click = (query) => document.querySelector(query)?.click();
  const move = (by) => () => choose(Math.max(0, Math.min(rows.length - 1, row + by)));
  const search = () => {
    const box = document.querySelector("[data-search]");
    if (box) box.focus();
    else location.hash = href("browse");
  };
  const step = (which, page) => () => (around[which] ? (location.hash = expertLink(around[which])) : click(`[data-page=${page}]:not([disabled])`));
  const keys = {
    "g o": to("overview"), "g b": to("browse"), "g p": to("prompt"), "g c": to("compare"), "g m": to("masks"), "/": search, ":": () => name.focus(),
    j: move(1), k: move(-1), Enter: () => rows[row] && (location.hash = expertLink(rows[row])), n: step("next", "on"), p: step("previous", "back"),
    r: random, x: () => (rows[row] ? collection.toggle(rows[row]) : click(".title .collect")), t: turn, "?": () => dialog.showModal(),
  };
  listen(keys, dialog);
}

function choose(place) {
  row = place;
  for (const one of document.querySelectorAll("tr.chosen")) one.classList.remove("chosen");
  const line = [...document.querySelectorAll("tr[data-unit]")].find((one) => one.dataset.unit === rows[row]);
  line?.classList.add("chosen");
  line?.scrollIntoView({ block: "nearest" });
}

async function random() {
  const { total } = await source.browse({ "min.count": 1, count: 0 });
  if (!total) return;
  const { rows: found } = await source.browse({ "min.count": 1, sort: "unit", offset: Math.floor(Math.random() * total), count: 1 });
  location.hash = expertLink(found[0].name);
}

async function draw() {
  const number = ++drawn;
  const { view, rest, params } = parse(location.hash);
  rows = [];
  row = -1;
  around = {};
  for (const tab of document.querySelectorAll("[data-view]")) {
    const isCurrent = tab.dataset.view === view || (view === "expert" && tab.dataset.view === "browse");
    if (isCurrent) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  document.title = `${TABS.find(([name]) => name === view)?.[1] ?? "Monet"} · Monet`;
  const box = h("div", { class: `view view-${view}` });
  replace(root, box);
  scrollTo(0, 0);
  if (!VIEWS[view]) {
    replace(box, h("h1", {}, "There is no such view"), notice(`The address ends in ${location.hash}. Choose a view above.`, "error"));
    return;
  }
  append(box, busy("…"));
  const context = {
    source, info, rest, params, live: info.live, isCurrent: () => number === drawn, refresh: async () => (info = await source.info()),
    setRows: (names) => number === drawn && ((rows = names), (row = -1)),
    setNeighbours: (previous, next) => (around = { previous, next }),
  };
  try {
    await VIEWS[view](box, context);
  } catch (error) {
    if (number === drawn) replace(box, h("h1", {}, "This cannot be shown"), notice(error.message, "error"), h("p", {}, link(href("browse"), {}, "All experts")));
  }
}

async function start() {
  theme.apply();
  try {
    info = await source.info();
  } catch (error) {
    replace(root, h("h1", {}, "The index cannot be read"), notice(error.message, "error"));
    return;
  }
  collection.open(info.fingerprint);
  header();
  addEventListener("hashchange", draw);
  await draw();
}

start();
