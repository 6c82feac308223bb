// One expert: its contexts, intervals, labels, tokens, effects, neighbours, masks, explanations.

import { bars, histogram } from "./charts.js";
import { busy, h, latest, link, notice, replace } from "./dom.js";
import { count, layersOf, nameOf, number, percent, token as shown } from "./format.js";
import { expertLink, href } from "./router.js";
import { collectButton, unitTable } from "./rows.js";
import { context } from "./tokens.js";

export async function expert(root, { source, info, rest, live, setNeighbours, isCurrent }) {
  if (!rest[0]) return void (location.hash = href("browse"));
  const one = await source.expert(rest[0]);
  if (!isCurrent()) return;
  setNeighbours(one.previous, one.next);
  document.title = `${nameOf(one)} · Monet`;
  const stored = (name) => localStorage.getItem(name) === "1";
  const settings = { breaks: stored("monet-breaks") };
  const explained = one.explained;
  const largest = Math.max(one.max, 1e-9);
  const top = h("div", { class: "contexts" });
  const samples = h("div", {});
  const note = h("p", { class: "quiet", role: "status" });
  let weights = one.contexts[0]?.weights ? [...one.contexts, ...one.samples].map((each) => each.weights) : null;

  function line(each, n) {
    const where = h("span", { class: "where", title: `document ${each.document}, window ${each.window}, token ${each.start + each.position}` }, each.label);
    return h("li", {}, h("span", { class: "weight" }, number(each.weight)), where, context(each, weights?.[n], largest, settings.breaks));
  }

  function drawContexts() {
    replace(top, one.contexts.length ? h("ol", { class: "lines" }, one.contexts.map(line)) : notice("It never fires in this text, so it has no contexts."));
    const edges = info.edges;
    const intervals = [...new Set(one.samples.map((each) => each.interval))].sort((a, b) => b - a);
    replace(
      samples,
      intervals.map((interval) => [
        h("h3", { class: "interval" }, `${interval === 0 ? "up to" : `${number(edges[2 * interval])} to`} ${number(edges[2 * interval + 2])}`, h("span", { class: "quiet" }, ` · ${count(one.histogram[2 * interval] + one.histogram[2 * interval + 1])} firings`)),
        h("ol", { class: "lines" }, one.samples.map((each, n) => (each.interval === interval ? line(each, one.contexts.length + n) : null))),
      ]),
    );
  }

  const halves = one.halves.map((name, n) => [n ? " · " : "", link(expertLink(name), {}, `half ${"ij"[n]} = ${n ? one.j : one.i}`)]);
  const rule = one.label === null ? [] : [["Share in best label", `${percent(one.label_share)} (${one.label})`, one.label_ratio === null ? "it fires in no other label" : `${number(one.label_ratio)} times the second label`]];
  const facts = [
    ["Firings", count(one.count), `${percent(one.rate, 2)} of ${count(info.tokens)} tokens`],
    ["Largest weight", number(one.max), `of at most ${info.heads}`],
    ...rule,
    ["Most on one token", one.tokens.length ? percent(one.token_share) : "–", one.tokens.length ? `of its firings are on “${shown(one.tokens[0][0])}”` : ""],
  ];
  const breaks = h("input", { type: "checkbox", checked: settings.breaks, onchange: (event) => ((settings.breaks = event.target.checked), localStorage.setItem("monet-breaks", event.target.checked ? "1" : "0"), drawContexts()) });
  const ticks = [[0, "0"], ...[4, 8, 12, 16].map((n) => [n, number(info.edges[n], 2)])];
  const promoted = h("div", {});
  const neighbours = h("div", {});
  const uncertain = one.tokens.length > 0 && one.token_error > 0 && h("p", { class: "quiet" }, `Estimated from samples; a share has a standard error of at most ${percent(one.token_error)}.`);
  replace(
    root,
    h(
      "div",
      { class: "title" },
      h("h1", {}, nameOf(one), " ", collectButton(one.name)),
      h("nav", { class: "steps", "aria-label": "other experts" }, link(expertLink(one.previous), { rel: "prev", title: "previous expert (p)" }, "← previous"), link(expertLink(one.next), { rel: "next", title: "next expert (n)" }, "next →")),
    ),
    h("p", { class: "lead" }, `Routing group ${one.group}, ${layersOf(info, one.group)}`, one.kind === "pair" ? `, keys (${one.i}, ${one.j})${halves.length ? ": " : ""}` : one.kind === "first" ? `. All experts with the first key ${one.i}. ` : `. All experts with the second key ${one.j}. `, halves),
    (explained.explanations.length > 0 || explained.scores.length > 0) && h("section", { class: "explanations" }, explained.explanations.map(explanation), explained.scores.length > 0 && h("p", { class: "others" }, explained.scores.map(score))),
    h("dl", { class: "facts" }, facts.map(([name, value, small]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, h("small", {}, small))))),
    h(
      "div",
      { class: "columns" },
      h(
        "div",
        { class: "main-column" },
        h("section", {}, h("div", { class: "section-head" }, h("h2", {}, "Strongest contexts"), h("label", { class: "inline quiet" }, breaks, " line breaks")), note, top),
        one.samples.length > 0 && h("section", {}, h("h2", {}, "Samples by weight"), h("p", { class: "quiet" }, "Random firings from each interval of weight. They show whether weak firings mean the same as strong ones."), samples),
        h("section", {}, h("h2", {}, "Neighbours"), neighbours),
      ),
      h(
        "aside",
        { class: "side-column" },
        h("section", {}, h("h2", {}, "Fires on"), one.tokens.length ? bars(one.tokens.map(([text, firings]) => [h("code", {}, shown(text)), firings / Math.max(one.count, 1), percent(firings / Math.max(one.count, 1))]), { most: 1 }) : notice("no token"), uncertain),
        h("section", {}, h("h2", {}, "Mean weight by label"), bars(info.labels.map((label, n) => [label, one.label_means[n]]))),
        one.count > 0 && h("section", {}, h("h2", {}, "Weights"), histogram(one.histogram, { label: "firings by weight, logarithmic", isLog: true, ticks, describe: (n) => `weight ${number(info.edges[n], 2)} to ${number(info.edges[n + 1], 2)}` })),
        h("section", {}, h("h2", {}, "Effect on the next token"), promoted),
        h("section", {}, h("h2", {}, "Masks that remove it"), one.masks.length ? h("ul", {}, one.masks.map((name) => h("li", {}, link(href("browse", [], { mask: name }), {}, name)))) : h("p", { class: "quiet" }, Object.keys(info.masks).length ? "none of the known masks" : "No masks are known; name folders with --masks.")),
      ),
    ),
  );
  drawContexts();
  drawNeighbours(source, one, neighbours);
  drawPromoted(source, one, promoted, live);
  if (weights || !one.contexts.length) return;
  if (!live) return void replace(note, "Only the firing token is coloured. monet view with --model shows the weight at every token.");
  replace(note, "Reading the weights of all tokens…");
  try {
    const found = await source.weights(one.name);
    if (!isCurrent()) return;
    weights = found;
    replace(note);
    drawContexts();
  } catch (error) {
    replace(note, error.message);
  }
}

function explanation(one) {
  const by = [one.explainer, one.model].filter(Boolean).join(", ");
  return h("blockquote", {}, h("p", {}, one.explanation), h("footer", {}, by && h("span", {}, `by ${by}`), one.scores.map(score)));
}

function score(one) {
  if (one.score === null) return h("span", { class: "score" }, `${one.scorer}: ${one.skipped || "no score"}`);
  const parts = [
    one.interval && `${number(one.interval[0])} to ${number(one.interval[1])}`,
    one.control_permuted !== null && `another explanation ${number(one.control_permuted)}`,
    one.control_empty !== null && `none ${number(one.control_empty)}`,
    one.chance !== null && one.control_permuted === null && `chance ${number(one.chance)}`,
    one.failed > 0 && `${count(one.failed)} failed`,
  ].filter(Boolean);
  return h("span", { class: "score", title: `${count(one.n)} items${one.judge ? `, judged by ${one.judge}` : ""}` }, `${one.scorer} `, h("b", {}, number(one.score)), parts.length > 0 && ` (${parts.join("; ")})`);
}

function drawNeighbours(source, one, root) {
  const kinds = [["contexts", "in common contexts"], ["labels", "by labels"], ...(one.kind === "pair" ? [["key", "with a common key"]] : [])];
  const table = h("div", { class: "scroll" });
  const buttons = kinds.map(([by, text]) => h("button", { type: "button", class: "tab", "data-by": by, onclick: () => show(by) }, text));
  const ask = latest();
  async function show(by) {
    const isLatest = ask();
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.by === by));
    replace(table, busy("Comparing…"));
    try {
      const found = await source.neighbours(one.name, by);
      if (isLatest()) replace(table, found.length ? unitTable(found, { extras: found.map((each) => each.similarity) }) : h("p", { class: "quiet" }, "none"));
    } catch (error) {
      if (isLatest()) replace(table, notice(error.message, "error"));
    }
  }
  replace(root, h("div", { class: "tabs" }, buttons), table);
  show("contexts");
}

function drawPromoted(source, one, root, live) {
  const lists = h("div", {});
  const draw = (found) => {
    const list = (title, entries) => h("div", {}, h("h3", {}, title), bars(entries.map(([text, effect]) => [h("code", {}, shown(text)), effect, number(effect)])));
    replace(lists, h("p", { class: "quiet" }, found.how === "static" ? "Read from the weights; in logits, with the final norm frozen." : `Measured: logits with it minus logits without it, in ${count(found.contexts)} contexts.`), h("div", { class: "pair" }, list("Promotes", found.promoted), list("Suppresses", found.suppressed)));
  };
  if (!live) {
    if (one.promoted) draw(one.promoted), replace(root, lists);
    else replace(root, h("p", { class: "quiet" }, "monet view with --model shows it."));
    return;
  }
  const kinds = one.kind === "pair" ? [["static", "from weights"], ["measured", "measured"]] : [["measured", "measured"]];
  const buttons = kinds.map(([how, text]) => h("button", { type: "button", class: "tab", "data-how": how, onclick: () => show(how) }, text));
  const ask = latest();
  async function show(how) {
    const isLatest = ask();
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.how === how));
    replace(lists, busy(how === "static" ? "Reading the weights…" : "Running the model on its contexts…"));
    try {
      const found = await source.promoted(one.name, how);
      if (isLatest()) draw(found);
    } catch (error) {
      if (isLatest()) replace(lists, notice(error.message, "error"));
    }
  }
  replace(root, h("div", { class: "tabs" }, buttons), lists);
  if (one.kind === "pair") show("static");
  else replace(lists, h("p", { class: "quiet" }, "A half has no output by itself; measure it."));
}
