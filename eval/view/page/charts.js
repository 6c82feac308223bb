// Small charts as SVG and HTML; all of them also say their numbers in text.

import { h, s } from "./dom.js";
import { count, number } from "./format.js";

// Bars of counts over bins. `edges` has one more entry than `counts`; `pick` is called with a bin's number.
export function histogram(counts, { label, ticks, isLog = false, describe, pick, height = 96 }) {
  const width = 320;
  const scale = (value) => (isLog ? Math.log10(1 + value) : value);
  const most = Math.max(...counts.map(scale), 1e-9);
  const step = width / counts.length;
  const bars = counts.map((value, n) => {
    const size = value ? Math.max(1.5, (height * scale(value)) / most) : 0;
    const title = s("title", {}, `${describe(n)}: ${count(value)}`);
    const hit = s("rect", { class: "hit", x: n * step, y: 0, width: step, height });
    return s(
      "g", pick ? { class: "can-pick", onclick: () => pick(n) } : {}, title, hit,
      s("rect", { class: "bar", x: n * step + 0.75, y: height - size, width: Math.max(0.5, step - 1.5), height: size }),
    );
  });
  const axis = ticks.map(([n, text]) => s("text", { class: "tick", x: n * step, y: height + 14, "text-anchor": n === 0 ? "start" : n === counts.length ? "end" : "middle" }, text));
  const line = s("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height });
  return h("figure", { class: "chart" }, s("svg", { viewBox: `0 0 ${width} ${height + 18}`, role: "img", "aria-label": label }, bars, line, axis), h("figcaption", {}, label));
}

// Rows with a bar each: `[name, value, text, link]`.
export function bars(rows, { most, kind = "" } = {}) {
  const largest = most ?? Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-12);
  return h(
    "div",
    { class: `bars ${kind}` },
    rows.map(([name, value, text]) => [
      h("span", { class: "bars-name" }, name),
      h("span", { class: `bars-line ${value < 0 ? "down" : ""}` }, h("span", { class: "bars-bar", vars: { "--share": `${Math.min(100, (100 * Math.abs(value)) / largest)}%` } })),
      h("span", { class: "bars-value" }, text ?? number(value)),
    ]),
  );
}

// Cells of counts, darker for more. `cell(x, y)` gives a title; `pick(x, y)` opens it.
export function density(counts, { label, cell, pick, xTicks, yTicks, xName, yName }) {
  const [columns, rows] = [counts.length, counts[0].length];
  const [width, height, left, below] = [560, 220, 46, 34];
  const [dx, dy] = [(width - left) / columns, (height - below) / rows];
  const most = Math.log10(1 + Math.max(...counts.flat(), 1));
  const cells = counts.flatMap((line, x) =>
    line.map((value, y) => {
      if (!value) return null;
      const share = Math.log10(1 + value) / most;
      return s(
        "rect",
        { class: "cell", x: left + x * dx, y: (rows - 1 - y) * dy, width: dx - 0.6, height: dy - 0.6, vars: { "--a": (0.1 + 0.9 * share).toFixed(3) }, onclick: () => pick(x, y) },
        s("title", {}, `${cell(x, y)}: ${count(value)}`),
      );
    }),
  );
  const base = height - below;
  const texts = [
    ...xTicks.map(([x, text]) => s("text", { class: "tick", x: left + x * dx, y: base + 13, "text-anchor": "middle" }, text)),
    ...yTicks.map(([y, text]) => s("text", { class: "tick", x: left - 6, y: (rows - y) * dy + 4, "text-anchor": "end" }, text)),
    s("text", { class: "tick", x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, xName),
    s("text", { class: "tick", x: 10, y: base / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${base / 2})` }, yName),
  ];
  const lines = [s("line", { class: "axis", x1: left, x2: width, y1: base, y2: base }), s("line", { class: "axis", x1: left, x2: left, y1: 0, y2: base })];
  return h("figure", { class: "chart wide" }, s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, cells, lines, texts), h("figcaption", {}, label));
}
