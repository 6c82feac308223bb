// The overview: how often experts fire, how specialised they are, and how many never fire, by routing group.

import { density, histogram } from "./charts.js";
import { h, link, replace } from "./dom.js";
import { count, layersOf, percent, share } from "./format.js";
import { expertLink, href } from "./router.js";
import { tokensCell } from "./rows.js";

export async function overview(root, { source, info }) {
  const found = await source.overview();
  const rateText = (power) => share(10 ** power);
  const bounds = (n) => ({ "min.rate": (10 ** found.rate_edges[n]).toPrecision(6), "max.rate": (10 ** found.rate_edges[n + 1]).toPrecision(6) });
  const shares = (n) => ({ "min.label_share": found.share_edges[n].toFixed(2), "max.label_share": found.share_edges[n + 1].toFixed(2) });
  const go = (params) => (location.hash = href("browse", [], params));
  const dead = found.groups.reduce((sum, one) => sum + one.never_fire, 0);
  const facts = [
    [count(info.experts), "experts", `${info.keys} × ${info.keys} in each of ${info.groups} routing groups`],
    [percent(dead / info.experts), "never fire", `${count(dead)} experts in this text`],
    [count(info.tokens), "tokens read", `${count(info.windows)} windows`],
    [count(info.labels.length), "labels", info.labels.join(", ")],
  ];
  const rateTicks = [0, 8, 16, 24, 28].map((n) => [n, rateText(found.rate_edges[n])]);
  const groupCard = (one) =>
    h(
      "article",
      { class: "card" },
      h("h3", {}, `Group ${one.group}`, h("span", { class: "quiet" }, ` · ${layersOf(info, one.group)}`)),
      h(
        "p",
        { class: "meter", title: `${count(one.never_fire)} of ${count(one.experts)} experts never fire` },
        h("span", { class: "meter-line" }, h("span", { class: "meter-bar", vars: { "--share": `${(100 * one.never_fire) / one.experts}%` } })),
        `${percent(one.never_fire / one.experts)} never fire`,
      ),
      histogram(one.rate, {
        label: "share of tokens at which an expert fires", ticks: rateTicks.filter(([n]) => n !== 24),
        describe: (n) => `experts that fire at ${rateText(found.rate_edges[n])} to ${rateText(found.rate_edges[n + 1])} of the tokens`,
        pick: (n) => go({ group: one.group, sort: "-rate", ...bounds(n) }),
      }),
      histogram(one.label_share, {
        label: "share of the weights that is in the best label", ticks: [[0, "0 %"], [10, "50 %"], [20, "100 %"]],
        describe: (n) => `experts with ${percent(found.share_edges[n], 0)} to ${percent(found.share_edges[n + 1], 0)} in their best label`,
        pick: (n) => go({ group: one.group, sort: "-label_share", ...shares(n) }),
      }),
    );
  const starters = h("tbody", {}, h("tr", {}, h("td", { colspan: 3, class: "quiet" }, "…")));
  replace(
    root,
    h("h1", {}, "Look inside ", h("em", {}, info.name)),
    h("p", { class: "lead" }, `Where do the experts of ${info.model} fire? Choose a bar, a cell or a label to see its experts.`),
    info.part && h("p", { class: "notice" }, "This index holds a part of the text. Join the parts with monet index merge."),
    found.note && h("p", { class: "notice" }, found.note),
    h("dl", { class: "facts" }, facts.map(([value, name, note]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, h("small", {}, note))))),
    h("section", {}, h("h2", {}, "By routing group"), h("div", { class: "cards" }, found.groups.map(groupCard))),
    h(
      "section",
      {},
      h("h2", {}, "How often, and how special"),
      density(found.density, {
        label: "experts that fire, by the share of tokens at which they fire and the share of their weights in the best label",
        xName: "share of tokens at which the expert fires", yName: "in best label",
        xTicks: [0, 4, 8, 12, 16, 20, 24, 28].map((n) => [n, rateText(found.rate_edges[n])]),
        yTicks: [[0, "0 %"], [5, "25 %"], [10, "50 %"], [15, "75 %"], [20, "100 %"]],
        cell: (x, y) => `fires at ${rateText(found.rate_edges[x])} to ${rateText(found.rate_edges[x + 1])}, ${percent(found.share_edges[y], 0)} to ${percent(found.share_edges[y + 1], 0)} in the best label`,
        pick: (x, y) => go({ sort: "-count", ...bounds(x), ...shares(y) }),
      }),
    ),
    h(
      "section",
      {},
      h("h2", {}, "By label"),
      h("p", {}, `Experts with at least ${percent(found.specialist, 0)} of their mean weights in one label, by routing group, and of each label the most specialised expert among those that fire 100 times or more.`),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "plain" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Label"), found.groups.map((one) => h("th", { scope: "col", class: "number" }, `Group ${one.group}`)), h("th", { scope: "col" }, "Most specialised"), h("th", { scope: "col" }, "Fires on"))),
          starters,
        ),
      ),
    ),
  );
  const first = await Promise.all(found.labels.map((label) => source.browse({ label, sort: "-label_share", "min.count": 100, count: 1 })));
  replace(
    starters,
    found.labels.map((label, n) => {
      const [row] = first[n].rows;
      return h(
        "tr",
        {},
        h("th", { scope: "row" }, link(href("browse", [], { label, sort: "-label_share", "min.count": 100 }), {}, label)),
        found.groups.map((one) => h("td", { class: "number" }, link(href("browse", [], { label, group: one.group, "min.label_share": found.specialist }), {}, count(one.specialists[n])))),
        h("td", {}, row ? link(expertLink(row.name), { class: "unit" }, row.name) : "–", row && h("span", { class: "quiet" }, ` ${percent(row.label_share, 1)}`)),
        h("td", {}, row ? tokensCell(row) : "–"),
      );
    }),
  );
}
