// A typed text: which experts are active at each token?

import { busy, field, h, link, notice, replace, select } from "./dom.js";
import { number, percent, token as shown } from "./format.js";
import { expertLink, href, remember } from "./router.js";
import { collectButton, labelCell, tokensCell } from "./rows.js";
import { choosable, chip } from "./tokens.js";

export const EXAMPLE = "Der Mann und die Frau gehen nach Hause.";

export function noModel(title) {
  return [h("h1", {}, title), notice("This view runs the model. Start the page with it: monet view INDEX --model MODEL")];
}

export async function prompt(root, { source, info, params, live, isCurrent }) {
  if (!live) return void replace(root, noModel("Prompt"));
  const text = h("textarea", { rows: 4, placeholder: EXAMPLE, "aria-label": "text", "data-search": true }, params.get("text") ?? "");
  const group = select({}, [["", "all groups"], ...info.layers.map((_, n) => [String(n), `group ${n}`])], params.get("group") ?? "");
  const results = h("div", { "aria-live": "polite" });
  const button = h("button", { type: "submit", "data-run": true }, "Show experts");
  const form = h("form", { class: "ask", onsubmit: (event) => (event.preventDefault(), run()) }, text, h("div", { class: "form-end" }, field("Experts of", group), button, h("span", { class: "hint" }, "Ctrl Enter")));
  replace(root, h("h1", {}, "Prompt"), h("p", { class: "lead" }, "Type a text. The table shows the experts with the largest weights at each token."), form, results);

  async function run() {
    if (!text.value) text.value = EXAMPLE;
    remember(href("prompt", [], { text: text.value, group: group.value }));
    button.disabled = true;
    replace(results, busy("Running the model…"));
    try {
      const found = await source.prompt(text.value, group.value === "" ? null : Number(group.value));
      if (isCurrent()) show(found);
    } catch (error) {
      replace(results, notice(error.message, "error"));
    } finally {
      button.disabled = false;
    }
  }

  function show(found) {
    const typed = h("div", {});
    const detail = h("div", { class: "detail" });
    const losses = found.loss.map((one) => one ?? 0);
    const most = Math.max(...losses, 1);
    const look = (n) => ({ kind: "loss", share: losses[n] / most, title: found.loss[n] === null ? "the first token has no prediction before it" : `loss ${number(found.loss[n])} nats` });
    const table = h("div", { class: "scroll" });
    let chosen = found.tokens.length - 1;
    const choose = (n) => {
      chosen = n;
      replace(typed, choosable(found.tokens, look, choose, chosen));
      typed.querySelectorAll("[role=option]")[n]?.focus({ preventScroll: true });
      replace(
        detail,
        h("h3", {}, "At token ", h("code", {}, shown(found.tokens[n])), h("span", { class: "quiet" }, found.loss[n] === null ? "" : ` · loss ${number(found.loss[n])} nats`)),
        h("p", { class: "chips" }, found.of_token[n].map(([name, weight]) => link(expertLink(name), { class: "chip" }, name, h("span", { class: "chip-number" }, number(weight, 2))))),
      );
      for (const cell of table.querySelectorAll("[data-token]")) cell.classList.toggle("chosen", Number(cell.dataset.token) === n);
    };
    const largest = Math.max(...found.experts.flatMap((one) => one.weights), 1e-9);
    const head = h("tr", {}, h("th", { scope: "col" }, "Expert"), found.tokens.map((one, n) => h("th", { scope: "col", class: "turned", "data-token": n, onclick: () => choose(n) }, h("span", {}, shown(one)))));
    const body = found.experts.map((one) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, h("span", { class: "row-name" }, link(expertLink(one.name), { class: "unit" }, one.name), collectButton(one.name), labelCell(one)), tokensCell(one, 3)),
        one.weights.map((weight, n) => h("td", { class: weight ? "cell" : "", "data-token": n, title: weight ? `${one.name} at ${shown(found.tokens[n])}: ${number(weight)}` : null, vars: { "--a": (weight / largest).toFixed(3) }, onclick: () => choose(n) }, weight >= 0.005 ? weight.toFixed(2) : "")),
      ),
    );
    replace(table, h("table", { class: "matrix" }, h("thead", {}, head), h("tbody", {}, body)));
    replace(
      results,
      h("section", {}, h("h2", {}, "Tokens"), h("p", { class: "quiet" }, "Darker tokens were harder to predict. Choose one to see its experts."), typed, detail),
      h("section", {}, h("h2", {}, "Predicted next"), h("p", { class: "chips" }, found.next.map(([one, share]) => chip(one, percent(share))))),
      h("section", {}, h("h2", {}, "Tokens × experts"), table),
    );
    choose(chosen);
  }

  if (params.get("text")) await run();
  else text.focus();
}


