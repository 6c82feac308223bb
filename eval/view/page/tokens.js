// Tokens with colours.

import { h } from "./dom.js";
import { number, token as shown } from "./format.js";

// One token. Line breaks are drawn as a mark, so that a context stays compact.
function piece(text, props, breaks) {
  const element = h("span", { ...props, class: `t ${props.class ?? ""}` });
  if (text === "") {
    element.append(h("span", { class: "mark" }, "∅"));
    return element;
  }
  for (const part of text.split(/([\n\t])/)) {
    if (part === "") continue;
    if (part === "\n") {
      element.append(h("span", { class: "mark" }, "↵"));
      if (breaks) element.append("\n");
    } else if (part === "\t") element.append(h("span", { class: "mark" }, "⇥"), " ");
    else element.append(part);
  }
  return element;
}

// A context: the token at which the unit fires is framed; colours show the weights, if they are known.
export function context(one, weights, largest, breaks = false) {
  const cut = (isCut) => isCut && h("span", { class: "mark" }, "…");
  const pieces = one.tokens.map((text, n) => {
    const weight = weights ? weights[n] : n === one.position ? one.weight : 0;
    if (!weight && n !== one.position) return text === "" ? null : piece(text, {}, breaks);
    const share = Math.min(1, weight / Math.max(largest, 1e-9));
    const title = `${shown(text)}  ${number(weight)}`;
    return piece(text, { class: n === one.position ? "on here" : "on", vars: { "--a": (0.22 + 0.78 * share).toFixed(3) }, title }, breaks);
  });
  return h("span", { class: "tokens" }, cut(one.cut[0]), pieces, cut(one.cut[1]));
}

// A typed text, whose tokens can be chosen. `look(n)` gives class, share and title of token n.
export function choosable(tokens, look, choose, chosen) {
  return h(
    "div",
    { class: "tokens typed", role: "listbox", "aria-label": "tokens of the text" },
    tokens.map((text, n) => {
      const { kind, share, title } = look(n);
      const props = {
        class: `pick ${kind ?? ""}`, role: "option", tabindex: "0", title, "aria-selected": String(n === chosen),
        vars: { "--a": (share ?? 0).toFixed(3) }, onclick: () => choose(n),
        onkeydown: (event) => {
          if (event.key === "Enter" || event.key === " ") {
            event.preventDefault();
            choose(n);
          }
        },
      };
      return piece(text, props, true);
    }),
  );
}

export function chip(text, extra) {
  return h("span", { class: "chip" }, shown(text), extra && h("span", { class: "chip-number" }, extra));
}
