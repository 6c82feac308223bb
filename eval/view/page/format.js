// Numbers and tokens for people.

export function count(value) {
  return Number(value).toLocaleString("en-US");
}

export function percent(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  const share = 100 * value;
  if (share !== 0 && Math.abs(share) < 10 ** -digits) return share.toLocaleString("en-US", { maximumSignificantDigits: 1 }) + " %";
  return share.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }) + " %";
}

// A share of any size, with two digits that count.
export function share(value) {
  return (100 * value).toLocaleString("en-US", { maximumSignificantDigits: 2, maximumFractionDigits: 8 }) + " %";
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return value.toLocaleString("en-US", { maximumSignificantDigits: digits });
}

export function signed(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const text = Math.abs(value).toFixed(digits);
  return (value > 0 ? "+" : value < 0 && Number(text) !== 0 ? "−" : "") + text;
}

// A token in a list: blanks at its ends and line breaks can be seen.
export function token(text) {
  if (text === "") return "∅";
  return text.replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length)).replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

export function nameOf(row) {
  return row.kind === "pair" ? `Expert ${row.name}` : `Half ${row.name}`;
}

export function layersOf(info, group) {
  const [first, last] = info.layers[group];
  return first === last ? `layer ${first}` : `layers ${first}–${last}`;
}

export function plural(value, word) {
  return `${count(value)} ${word}${value === 1 ? "" : "s"}`;
}
