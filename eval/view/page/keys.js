// Keys, and the window that lists them.

import { h } from "./dom.js";

const HELP = [
  ["g o", "overview"], ["g b", "browse experts"], ["g p", "prompt"], ["g c", "compare"], ["g m", "mask workshop"],
  ["/", "search for a token"], [":", "go to an expert by its name"], ["j  k", "next and previous row"], ["Enter", "open the row"],
  ["n  p", "next and previous expert, or page"], ["r", "a random expert"], ["x", "add the expert to the collection, or remove it"],
  ["Ctrl Enter", "run the prompt or the comparison"], ["t", "light, dark, or the system's colours"], ["?", "this list"], ["Esc", "close, or leave a field"],
];

export function helpWindow() {
  const dialog = h(
    "dialog",
    { class: "help", "aria-label": "keys" },
    h("h2", {}, "Keys"),
    h("dl", { class: "keys" }, HELP.map(([key, text]) => [h("dt", {}, key.split(" ").map((one) => one && h("kbd", {}, one))), h("dd", {}, text)])),
    h("p", { class: "quiet" }, "0:17 is the expert with id 17 (i × E + j) of routing group 0. 0:i3 and 0:j5 are halves: all experts with this key."),
    h("button", { type: "button", onclick: () => dialog.close() }, "Close"),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  return dialog;
}

// `actions` maps a key to what it does.
export function listen(actions, dialog) {
  let waiting = "";
  let timer;
  document.addEventListener("keydown", (event) => {
    const target = event.target;
    const isTyping = target.closest?.("input:not([type=checkbox]):not([type=radio]), textarea, select");
    if (event.key === "Escape" && isTyping) return target.blur();
    if (event.ctrlKey || event.metaKey) {
      if (event.key === "Enter") document.querySelector("[data-run]:not([disabled])")?.click();
      return;
    }
    if (isTyping || event.altKey || dialog.open) return;
    const key = waiting + event.key;
    waiting = "";
    clearTimeout(timer);
    if (event.key === "g") {
      waiting = "g ";
      timer = setTimeout(() => (waiting = ""), 1500);
      return;
    }
    const action = actions[key];
    if (!action) return;
    if (event.key === "Enter" && target.closest("a, button, summary, [role=option]")) return;
    event.preventDefault();
    action();
  });
}
