// A table of units, used for browsing and for neighbours.

import * as collection from "./collection.js";
import { h, link } from "./dom.js";
import { count, number, percent } from "./format.js";
import { expertLink } from "./router.js";
import { chip } from "./tokens.js";

export const COLUMNS = [
  ["unit", "Expert", "the place in the index"],
  ["label_share", "Best label", "share of the mean weights that is in the best label"],
  ["token_share", "Fires on", "share of its firings that is on its most frequent token"],
  ["count", "Firings", "tokens at which the weight is above zero"],
  ["max", "Max. weight", "largest weight at a token"],
];

export function collectButton(name) {
  const button = h("button", { type: "button", class: "collect", "data-collect": name, onclick: () => collection.toggle(name) });
  const draw = () => {
    const isIn = collection.has(name);
    button.textContent = isIn ? "✓" : "+";
    button.setAttribute("aria-pressed", String(isIn));
    button.title = isIn ? `${name} is in the collection; remove it (x)` : `add ${name} to the collection (x)`;
    button.setAttribute("aria-label", button.title);
  };
  button.redraw = draw;
  draw();
  return button;
}

// The button of every visible unit follows the collection.
collection.onChange(() => {
  for (const button of document.querySelectorAll("button.collect")) button.redraw?.();
});

export function labelCell(row) {
  if (row.label === null) return h("span", { class: "quiet" }, "never fires");
  return h("span", { class: "share" }, h("span", { class: "share-bar", vars: { "--share": `${100 * row.label_share}%` } }), h("span", { class: "share-text" }, row.label, " ", h("span", { class: "quiet" }, percent(row.label_share, 0))));
}

export function tokensCell(row, most = 4) {
  if (!row.tokens.length) return h("span", { class: "quiet" }, "–");
  return h("span", { class: "chips" }, row.tokens.slice(0, most).map(([text]) => chip(text)));
}

export function unitRow(row, extra) {
  const scores = Object.entries(row.scores ?? {}).filter(([, value]) => value !== null);
  const cells = [
    h("td", { class: "name" }, link(expertLink(row.name), { class: "unit" }, row.name), row.kind === "pair" ? "" : h("span", { class: "quiet" }, row.kind === "first" ? " half i" : " half j")),
    h("td", { "data-name": "Best label" }, labelCell(row)),
    h("td", { "data-name": "Fires on" }, tokensCell(row), row.explanation && h("span", { class: "explained" }, row.explanation), scores.length > 0 && h("span", { class: "explained scores" }, scores.map(([name, value]) => `${name} ${number(value)}`).join(", "))),
    h("td", { class: "number", "data-name": "Firings", title: `${percent(row.rate, 2)} of the tokens` }, count(row.count)),
    h("td", { class: "number", "data-name": "Max. weight" }, number(row.max)),
    extra !== undefined && h("td", { class: "number", "data-name": "Similarity" }, number(extra)),
    h("td", { class: "tool" }, collectButton(row.name)),
  ];
  return h("tr", { "data-unit": row.name }, cells);
}

export function unitTable(rows, { head, extras, caption }) {
  return h(
    "table",
    { class: "units" },
    caption && h("caption", {}, caption),
    h("thead", {}, h("tr", {}, head ?? COLUMNS.map(([name, text]) => h("th", { scope: "col", class: ["count", "max"].includes(name) ? "number" : "" }, text)), extras && h("th", { scope: "col", class: "number" }, "Similarity"), h("th", { class: "tool" }, h("span", { class: "hidden" }, "Collect")))),
    h("tbody", {}, rows.map((row, n) => unitRow(row, extras?.[n]))),
  );
}
