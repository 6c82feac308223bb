// The experts that a person collects for a mask. They stay in this browser, separately for each model.

let key = "";
let content = empty();
const listeners = new Set();

function empty() {
  return { rules: [], masks: [], add: [], drop: [] };
}

export function open(fingerprint) {
  key = `monet-collection-${fingerprint}`;
  try {
    const stored = JSON.parse(localStorage.getItem(key) ?? "null");
    const names = (list) => (Array.isArray(list) ? list.filter((one) => typeof one === "string") : []);
    if (stored) {
      const rules = Array.isArray(stored.rules) ? stored.rules.filter((one) => one && typeof one === "object") : [];
      content = { rules, masks: names(stored.masks), add: names(stored.add), drop: names(stored.drop) };
    }
  } catch {
    content = empty();
  }
}

export function get() {
  return content;
}

export function isEmpty() {
  return !(content.rules.length || content.masks.length || content.add.length);
}

// How many entries a person made; a rule counts as one.
export function size() {
  return content.rules.length + content.masks.length + content.add.length;
}

export function onChange(listener) {
  listeners.add(listener);
}

export function has(name) {
  return content.add.includes(name);
}

export function toggle(name) {
  change({ add: has(name) ? content.add.filter((one) => one !== name) : [...content.add, name], drop: content.drop.filter((one) => one !== name) });
}

export function change(parts) {
  content = { ...content, ...parts };
  try {
    localStorage.setItem(key, JSON.stringify(content));
  } catch {
    // A browser may forbid storage; the collection then lasts until the page is closed.
  }
  for (const listener of listeners) listener();
}

export function addRule(params) {
  const rule = Object.fromEntries(Object.entries(params).filter(([name, value]) => value !== "" && !["sort", "offset", "count"].includes(name)));
  const same = (other) => JSON.stringify(Object.entries(other).sort()) === JSON.stringify(Object.entries(rule).sort());
  if (!content.rules.some(same)) change({ rules: [...content.rules, rule] });
}

export function clear() {
  change(empty());
}

// A rule in words.
export function inWords(rule) {
  const words = [];
  const kinds = { half: "halves", all: "experts and halves" };
  words.push(kinds[rule.kind] ?? "experts");
  if (rule.group) words.push(`of group ${rule.group}`);
  if (rule.label) words.push(`with the best label ${rule.label}`);
  if (rule.token) words.push(`that fire on ${rule.whole ? "the token" : "tokens with"} “${rule.token}”`);
  if (rule.explanation) words.push(`explained with “${rule.explanation}”`);
  if (rule.mask) words.push(`removed by ${rule.mask}`);
  for (const [name, value] of Object.entries(rule)) {
    const [end, column] = name.split(".");
    if (column) words.push(`${column} ${end === "min" ? "≥" : "≤"} ${value}`);
  }
  return words.join(", ").replace(", of", " of");
}
