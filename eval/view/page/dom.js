// Elements from names, properties and children. Text becomes text nodes, so no text is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "value" && "value" in element) element.value = value;
    else if (name === "checked" || name === "disabled" || name === "open") element[name] = Boolean(value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

export function append(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export function h(name, props, ...children) {
  return fill(document.createElement(name), props, children);
}

export function s(name, props, ...children) {
  return fill(document.createElementNS(SVG, name), props, children);
}

export function replace(element, ...children) {
  element.replaceChildren();
  return append(element, children);
}

export function link(href, props, ...children) {
  return h("a", { ...props, href }, ...children);
}

export function select(props, options, chosen) {
  const box = h("select", props, options.map(([value, text]) => h("option", { value }, text)));
  box.value = chosen ?? "";
  return box;
}

export function field(label, control, hint) {
  return h("label", { class: "field" }, h("span", { class: "field-name" }, label), control, hint && h("span", { class: "hint" }, hint));
}

export function notice(text, kind = "notice") {
  return h("p", { class: kind, role: kind === "error" ? "alert" : "status" }, text);
}

// Answers can arrive in another order than the requests. `const ask = latest()`; `const isLatest = ask()` before a
// request, `isLatest()` after its answer.
export function latest() {
  let asked = 0;
  return () => {
    const number = ++asked;
    return () => number === asked;
  };
}

export function busy(text) {
  return h("p", { class: "quiet busy", role: "status" }, text);
}
