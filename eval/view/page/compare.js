// The model with and without some experts: next tokens, loss of each token, and continuations side by side.

import { busy, field, h, latest, notice, replace } from "./dom.js";
import { count, number, percent, plural, signed, token as shown } from "./format.js";
import { EXAMPLE, noModel } from "./prompt.js";
import { removalChooser } from "./removal.js";
import { href, remember } from "./router.js";
import { choosable } from "./tokens.js";

export async function compare(root, { source, info, params, live, isCurrent }) {
  if (!live) return void replace(root, noModel("Compare"));
  const text = h("textarea", { rows: 4, placeholder: EXAMPLE, "aria-label": "text", "data-search": true }, params.get("text") ?? "");
  const removal = removalChooser(info, params, () => describe());
  const size = h("p", { class: "quiet", role: "status" });
  const results = h("div", { "aria-live": "polite" });
  const button = h("button", { type: "submit", "data-run": true }, "Compare");
  const form = h("form", { class: "ask", onsubmit: (event) => (event.preventDefault(), run()) }, text, h("div", { class: "form-end" }, removal.element, button, h("span", { class: "hint" }, "Ctrl Enter")), size);
  replace(root, h("h1", {}, "Compare"), h("p", { class: "lead" }, "What does the model lose without some experts? The removed experts add nothing to any token; all others stay."), form, results);

  const ask = latest();
  async function describe() {
    const isLatest = ask();
    try {
      const found = await source.collection(removal.value());
      if (isLatest()) replace(size, `removes ${plural(found.experts, "expert")}, ${percent(found.share, 2)} of all`);
    } catch (error) {
      if (isLatest()) replace(size, error.message);
    }
  }

  async function run() {
    if (!text.value) text.value = EXAMPLE;
    remember(href("compare", [], { text: text.value, ...removal.params() }));
    button.disabled = true;
    replace(results, busy("Running the model twice…"));
    try {
      const wanted = removal.value();
      const found = await source.compare(text.value, wanted);
      if (isCurrent()) show(found, text.value, wanted);
    } catch (error) {
      replace(results, notice(error.message, "error"));
    } finally {
      button.disabled = false;
    }
  }

  function show(found, typedText, wanted) {
    const change = found.after.map((after, n) => (after === null ? 0 : after - found.before[n]));
    const most = Math.max(...change.map(Math.abs), 0.5);
    const mean = (values) => values.filter((one) => one !== null).reduce((sum, one, _, all) => sum + one / all.length, 0);
    const [before, after] = [mean(found.before), mean(found.after)];
    const typed = h("div", {});
    const tables = h("div", { class: "pair next" });
    const look = (n) => ({ kind: change[n] > 0 ? "harder" : "easier", share: Math.abs(change[n]) / most, title: found.before[n] === null ? "no prediction before the first token" : `loss ${number(found.before[n])} → ${number(found.after[n])} nats (${signed(change[n])})` });
    const choose = (n) => {
      replace(typed, choosable(found.tokens, look, choose, n));
      typed.querySelectorAll("[role=option]")[n]?.focus({ preventScroll: true });
      const table = (title, entries) => h("table", { class: "plain" }, h("caption", {}, title), h("tbody", {}, entries.map(([one, share]) => h("tr", {}, h("td", {}, h("code", {}, shown(one))), h("td", { class: "number" }, percent(share)), h("td", { class: "bar-cell" }, h("span", { class: "share-bar", vars: { "--share": `${100 * share}%` } }))))));
      replace(tables, h("p", { class: "across" }, "After ", h("code", {}, shown(found.tokens[n])), found.tokens[n + 1] !== undefined && ["; the text continues with ", h("code", {}, shown(found.tokens[n + 1]))], h("span", { class: "quiet" }, ` · divergence ${number(found.divergence[n])} nats`)), table("all experts", found.top[n][0]), table("without the removed", found.top[n][1]));
    };
    const facts = [["Mean loss", number(before, 4), "all experts, nats per token"], ["Without", number(after, 4), `${signed(after - before, 3)} nats per token`], ["Tokens", count(found.tokens.length), `${plural(change.filter((one) => one > 0.01).length, "token")} harder, ${count(change.filter((one) => one < -0.01).length)} easier`]];
    replace(
      results,
      h("dl", { class: "facts" }, facts.map(([name, value, note]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, h("small", {}, note))))),
      h("section", {}, h("h2", {}, "Loss of each token"), h("p", { class: "legend" }, h("span", { class: "pick harder" }, "harder"), " and ", h("span", { class: "pick easier" }, "easier"), " to predict without the experts. Choose a token to see what comes next."), typed, tables),
      continuation(typedText, wanted),
    );
    choose(found.tokens.length - 1);
  }

  function continuation(typedText, wanted) {
    const panes = ["all experts", "without the removed"].map((title) => [title, h("p", { class: "written" })]);
    const length = h("input", { type: "number", min: 1, max: info.limits.new_tokens, value: 40 });
    const heat = h("input", { type: "number", min: 0, max: 10, step: 0.1, value: 0 });
    const state = h("span", { class: "quiet", role: "status" });
    let stop = null;
    const button = h("button", { type: "button", class: "secondary", onclick: () => (stop ? stop.abort() : write()) }, "Continue the text");
    async function write() {
      stop = new AbortController();
      button.textContent = "Stop";
      replace(state);
      for (const [, pane] of panes) replace(pane);
      try {
        const body = { text: typedText, collection: wanted, count: Number(length.value), temperature: Number(heat.value), seed: Math.floor(Math.random() * 2 ** 31) };
        let tokens = 0;
        for await (const step of source.continuation(body, stop.signal)) {
          if (!isCurrent()) stop.abort();
          tokens += 1;
          step.text.forEach((one, side) => replace(panes[side][1], h("span", { class: "given" }, typedText.slice(-80)), one));
          replace(state, plural(tokens, "token"));
        }
      } catch (error) {
        replace(state, error.name === "AbortError" ? "stopped" : error.message);
      }
      stop = null;
      button.textContent = "Continue the text";
    }
    return h("section", { class: "continuation" }, h("h2", {}, "Continuation"), h("div", { class: "form-end" }, field("New tokens", length), field("Temperature", heat, "0 takes the likeliest"), button, state), h("div", { class: "pair" }, panes.map(([title, pane]) => h("div", { class: "pane" }, h("h3", {}, title), pane))));
  }

  describe();
  if (params.get("text")) await run();
  else text.focus();
}
