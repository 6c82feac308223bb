// The mask workshop: collect experts by hand or by rule, see what they carry, save a mask.

import { bars } from "./charts.js";
import * as collection from "./collection.js";
import { busy, field, h, latest, link, notice, replace, select } from "./dom.js";
import { count, percent, plural } from "./format.js";
import { expertLink, href } from "./router.js";

export async function workshop(root, { source, info, live, refresh, isCurrent }) {
  const made = h("section", {});
  const content = h("section", {});
  const effect = h("section", {});
  const saving = h("section", {});
  replace(root, h("h1", {}, "Mask workshop"), h("p", { class: "lead" }, "A mask removes experts from the model. Collect them here, look at what they carry, and save the mask as a file."), h("div", { class: "columns" }, h("div", { class: "main-column" }, content, saving, made), h("aside", { class: "side-column" }, effect)));

  function drawKnown() {
    const masks = Object.entries(info.masks);
    replace(
      made,
      h("h2", {}, "Known masks"),
      masks.length
        ? h(
            "div",
            { class: "scroll" },
            h(
              "table",
              { class: "plain" },
              h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Mask"), info.layers.map((_, n) => h("th", { scope: "col", class: "number" }, `Group ${n}`)), h("th", {}))),
              h("tbody", {}, masks.map(([name, counts]) => h("tr", {}, h("th", { scope: "row" }, link(href("browse", [], { mask: name }), {}, name)), counts.map((one) => h("td", { class: "number" }, count(one))), h("td", {}, h("button", { type: "button", class: "secondary small", onclick: () => collection.get().masks.includes(name) || collection.change({ masks: [...collection.get().masks, name] }) }, "+ collect"))))),
            ),
          )
        : h("p", { class: "quiet" }, "None. Name folders of monet select with --masks, or save one here."),
    );
  }

  function entry(text, remove, to) {
    return h("li", {}, to ? link(to, {}, text) : text, " ", h("button", { type: "button", class: "icon small", title: "leave it out", "aria-label": `leave out ${text}`, onclick: remove }, "×"));
  }

  function drawContent() {
    const now = collection.get();
    const without = (name, one) => () => collection.change({ [name]: now[name].filter((other) => other !== one) });
    const list = (title, entries) => entries.length > 0 && [h("h3", {}, title), h("ul", { class: "entries" }, entries)];
    const names = h("input", { placeholder: "0:17, 1:402, 0:i3", "aria-label": "names of experts", autocomplete: "off", spellcheck: "false" });
    const add = (event) => {
      event.preventDefault();
      const given = names.value.split(/[\s,]+/).filter(Boolean);
      collection.change({ add: [...new Set([...now.add, ...given])], drop: now.drop.filter((one) => !given.includes(one)) });
    };
    replace(
      content,
      h("div", { class: "section-head" }, h("h2", {}, "Collection"), !collection.isEmpty() && h("button", { type: "button", class: "secondary small", onclick: () => collection.clear() }, "Empty it")),
      collection.isEmpty() && h("p", { class: "quiet" }, "Empty. Press + next to an expert, or make a rule: filter in ", link(href("browse"), {}, "Experts"), " and choose “collect all”."),
      list("Rules", now.rules.map((rule) => entry(collection.inWords(rule), without("rules", rule), href("browse", [], rule)))),
      list("Masks", now.masks.map((name) => entry(name, without("masks", name), href("browse", [], { mask: name })))),
      list("By hand", now.add.map((name) => entry(name, without("add", name), expertLink(name)))),
      h("form", { class: "form-end", onsubmit: add }, field("Add by name", names, "a half such as 0:i3 stands for all experts with its key"), h("button", { type: "submit", class: "secondary" }, "Add")),
      h("form", { class: "form-end", onsubmit: addRule }, field("Add by rule", label), field("Ratio to second label", ratio, "the paper's is 2"), h("button", { type: "submit", class: "secondary" }, "Add")),
    );
  }

  const label = select({ "aria-label": "label" }, info.labels.map((one) => [one, `experts of ${one}`]), info.labels[0]);
  const ratio = h("input", { type: "number", min: "1", step: "any", value: "2" });
  const addRule = (event) => (event.preventDefault(), collection.addRule({ label: label.value, "min.label_ratio": ratio.value || "2" }));

  const ask = latest();
  let weights = [];
  async function drawEffect() {
    const isLatest = ask();
    if (collection.isEmpty()) return void replace(effect);
    if (source.isStatic) return void replace(effect, notice("This page has no server, so it cannot save masks. The names above fit --experts and the Python interface."));
    if (!effect.childElementCount) replace(effect, busy("Counting…"));
    try {
      const found = await source.collection(collection.get());
      if (!isLatest() || !isCurrent()) return;
      weights = found.weights;
      const best = weights.indexOf(Math.max(...weights));
      if (!chosenLabel) target.value = info.labels[best];
      replace(
        effect,
        h("h2", {}, "What it removes"),
        h("p", {}, h("b", {}, plural(found.experts, "expert")), `, ${percent(found.share, 2)} of all. By group: ${found.by_group.map(count).join(", ")}.`),
        h("h3", {}, "Share of the routing weight, by label"),
        bars(info.labels.map((one, n) => [one, weights[n], percent(weights[n])]), { most: 1 }),
        h("p", { class: "quiet" }, "If this share is high for one label and low for the others, the mask is specific. ", live && link(href("compare", [], { remove: "collection" }), {}, "Compare the model with and without it.")),
      );
    } catch (error) {
      if (isLatest()) replace(effect, h("h2", {}, "What it removes"), notice(error.message, "error"));
    }
  }

  let chosenLabel = false;
  const target = select({ id: "mask-label", onchange: () => (chosenLabel = true) }, info.labels.map((one) => [one, one]), info.labels[0]);
  const name = h("input", { id: "mask-name", placeholder: "my-mask", autocomplete: "off", spellcheck: "false", maxlength: 64 });
  const state = h("div", { role: "status" });
  function drawSaving() {
    if (source.isStatic) return;
    const submit = (event) => (event.preventDefault(), save(false));
    replace(saving, h("h2", {}, "Save"), h("form", { class: "form-end", onsubmit: submit }, field("Name", name), field("It is about", target, "monet ablate compares this label with the others"), h("button", { type: "submit", "data-run": true, disabled: collection.isEmpty() }, "Save the mask")), h("p", { class: "quiet" }, `in ${info.masks_folder}`), state);
  }

  async function save(overwrite) {
    try {
      const found = await source.save({ name: name.value, label: target.value, collection: collection.get(), overwrite });
      if (found.exists) {
        replace(state, h("div", { class: "notice" }, h("p", {}, `${found.path} exists already. Replace it?`), h("button", { type: "button", class: "danger", onclick: () => save(true) }, "Replace"), " ", h("button", { type: "button", class: "secondary", onclick: () => replace(state) }, "Keep it")));
        return;
      }
      replace(state, h("div", { class: "notice good" }, h("p", {}, `Saved: ${plural(found.experts, "expert")}.`), h("pre", {}, `monet ablate --model MODEL --data DATA --out OUT \\\n  --masks "${found.saved}"`)));
      info = await refresh();
      drawKnown();
    } catch (error) {
      replace(state, notice(error.message, "error"));
    }
  }

  drawContent();
  drawSaving();
  drawKnown();
  collection.onChange(() => {
    if (!isCurrent()) return;
    drawContent();
    drawSaving();
    drawEffect();
  });
  await drawEffect();
}
