// What a comparison removes: the collection, a known mask, or the experts of a label.

import * as collection from "./collection.js";
import { field, h, link, select } from "./dom.js";
import { href } from "./router.js";

export function removalChooser(info, params, changed) {
  const masks = Object.keys(info.masks);
  const options = [
    ...(collection.isEmpty() ? [] : [["collection", "the collection"]]),
    ...masks.map((name) => [`mask:${name}`, `mask ${name}`]),
    ...info.labels.map((label) => [`label:${label}`, `experts of ${label}`]),
  ];
  const wanted = params.get("remove");
  const known = options.some(([value]) => value === wanted);
  const what = select({ onchange: () => show() }, options, known ? wanted : options[0]?.[0]);
  const ratio = h("input", { type: "number", min: "1", step: "any", value: params.get("ratio") ?? "2", oninput: () => changed() });
  const ratioField = field("Ratio to second label", ratio, "the paper's is 2");
  const show = () => {
    ratioField.hidden = !what.value.startsWith("label:");
    changed();
  };
  ratioField.hidden = !what.value.startsWith("label:");
  const element = h("div", { class: "removal" }, field("Remove", what, collection.isEmpty() && h("span", {}, "or collect experts in the ", link(href("masks"), {}, "workshop"))), ratioField);
  return {
    element,
    params: () => ({ remove: what.value, ratio: what.value.startsWith("label:") ? ratio.value : "" }),
    value() {
      const [kind, name] = what.value.split(/:(.*)/s);
      if (kind === "collection") return collection.get();
      if (kind === "mask") return { masks: [name] };
      return { rules: [{ label: name, "min.label_ratio": ratio.value || "2" }] };
    },
  };
}
