// All experts: sort, filter, search.

import * as collection from "./collection.js";
import { append, busy, field, h, latest, notice, replace, select } from "./dom.js";
import { count } from "./format.js";
import { href, remember } from "./router.js";
import { COLUMNS, unitTable } from "./rows.js";

const PAGE = 50;
const TEXTS = ["token", "explanation", "label", "group", "kind", "mask", "whole"];
const SORTS = {
  "-label_share": "most specialised label first", label_share: "least specialised first", "-label_ratio": "largest ratio of best to second label",
  "-token_share": "most on one token", "-count": "most firings", count: "fewest firings", "-max": "largest weight", "-mean": "largest mean weight",
  label_entropy: "lowest entropy over labels", token_entropy: "lowest entropy over tokens", "-match": "most on the searched token", unit: "order of the index",
};

export async function browse(root, { source, info, params, setRows }) {
  const state = Object.fromEntries(params);
  state.sort ??= state.token ? "-match" : "-label_share";
  let offset = Number(state.offset ?? 0);
  delete state.offset;
  const results = h("div", { class: "results" });
  const summary = h("p", { class: "summary", role: "status" });
  const ask = latest();

  const input = (name, props) => h("input", { id: `filter-${name}`, value: state[name] ?? "", autocomplete: "off", spellcheck: "false", oninput: (event) => later(name, event.target.value), ...props });
  const chooser = (name, options) => select({ onchange: (event) => set(name, event.target.value) }, options, state[name]);
  const orders = [...Object.entries(SORTS), ...info.scores.map((name) => [`-${name}`, `best ${name} score`])];
  const sorter = select({ onchange: (event) => set("sort", event.target.value) }, orders, orders.some(([name]) => name === state.sort) ? state.sort : "");
  const masks = Object.keys(info.masks);
  const whole = h("input", { type: "checkbox", checked: state.whole === "1", onchange: (event) => set("whole", event.target.checked ? "1" : "") });
  const number = (name, text, step) => field(text, input(name, { type: "number", min: "0", step, inputmode: "decimal" }));
  const form = h(
    "form",
    { class: "filters", onsubmit: (event) => event.preventDefault() },
    field("Token", input("token", { type: "search", placeholder: "fires on …", "data-search": true }), h("span", { class: "inline" }, whole, " the whole token")),
    info.explained > 0 && field("Explanation", input("explanation", { type: "search", placeholder: "contains …" })),
    field("Best label", chooser("label", [["", "any label"], ...info.labels.map((one) => [one, one])])),
    field("Group", chooser("group", [["", "any group"], ...info.layers.map((_, n) => [String(n), `group ${n}`])])),
    field("Units", chooser("kind", [["", "experts"], ["half", "halves"], ["all", "both"]])),
    masks.length > 0 && field("Removed by", chooser("mask", [["", "any or no mask"], ...masks.map((one) => [one, one])])),
    h("details", { class: "more", open: Object.keys(state).some((name) => name.includes(".")) }, h("summary", {}, "Ranges"), h("div", { class: "ranges" }, number("min.count", "Firings from", 1), number("max.count", "to", 1), number("min.label_share", "Share in best label from", "any"), number("max.label_share", "to", "any"), number("min.label_ratio", "Best to second label from", "any"), number("min.token_share", "Share on one token from", "any"), number("min.rate", "Share of tokens from", "any"), number("max.rate", "to", "any"))),
    h("div", { class: "form-end" }, field("Order", sorter), h("button", { type: "button", class: "secondary", onclick: () => (location.hash = href("browse")) }, "Reset")),
  );
  replace(root, h("h1", {}, "Experts"), form, summary, results);

  let timer;
  function later(name, value) {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (name === "token" && value && !state.token && !params.has("sort")) sorter.value = state.sort = "-match";
      if (name === "token" && !value && state.sort === "-match") sorter.value = state.sort = "-label_share";
      set(name, value);
    }, 180);
  }

  function set(name, value) {
    if (value === "") delete state[name];
    else state[name] = value;
    offset = 0;
    draw();
  }

  function sortHead(name, text, title) {
    const isActive = state.sort === name || state.sort === `-${name}`;
    const turn = () => {
      state.sort = state.sort === `-${name}` ? name : name === "unit" && state.sort !== "unit" ? "unit" : `-${name}`;
      sorter.value = orders.some(([name]) => name === state.sort) ? state.sort : "";
      offset = 0;
      draw();
    };
    const arrow = isActive ? (state.sort.startsWith("-") ? " ↓" : " ↑") : "";
    const order = isActive ? (state.sort.startsWith("-") ? "descending" : "ascending") : "none";
    return h("th", { scope: "col", "aria-sort": order, class: ["count", "max"].includes(name) ? "number" : "" }, h("button", { type: "button", class: "sort", title: `sort by ${title}`, onclick: turn }, text, arrow));
  }

  async function draw() {
    const isLatest = ask();
    remember(href("browse", [], { ...state, offset: offset || "" }));
    if (!results.childElementCount) replace(results, busy("Searching…"));
    let found;
    try {
      found = await source.browse({ ...state, offset, count: PAGE });
    } catch (error) {
      if (isLatest()) replace(summary), replace(results, notice(error.message, "error"));
      return;
    }
    if (!isLatest()) return;
    setRows(found.rows.map((row) => row.name));
    const end = offset + found.rows.length;
    replace(summary, found.total ? `${count(offset + 1)}–${count(end)} of ${count(found.total)}` : "No expert fits.");
    const isRule = Object.keys(state).some((name) => TEXTS.includes(name) || name.includes("."));
    if (found.total && isRule)
      append(summary, [h("button", { type: "button", class: "secondary small", title: "add this filter as a rule to the mask workshop", onclick: (event) => (collection.addRule(state), (event.target.textContent = "✓ collected")) }, `+ collect all ${count(found.total)}`)]);
    if (!found.total) {
      replace(results, notice("Loosen a filter, or reset them all. A token search looks at the tokens on which an expert fires most often."));
      return;
    }
    const step = (by) => () => ((offset = Math.max(0, offset + by)), draw(), scrollTo(0, 0));
    replace(
      results,
      unitTable(found.rows, { head: COLUMNS.map((one) => sortHead(...one)) }),
      h("nav", { class: "pages", "aria-label": "pages" }, h("button", { type: "button", class: "secondary", disabled: offset === 0, onclick: step(-PAGE), "data-page": "back" }, "← Previous"), h("button", { type: "button", class: "secondary", disabled: end >= found.total, onclick: step(PAGE), "data-page": "on" }, "Next →")),
    );
  }

  await draw();
}
