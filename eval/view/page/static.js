// The data of a page without a server: scripts that register themselves, because a page from disk cannot fetch.

const LIVE = "This page has no model. Run `monet view INDEX --model MODEL` for it.";

function load(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `data/${name}.js`;
    script.onload = resolve;
    script.onerror = () => reject(new Error(`The file data/${name}.js of this page is missing. Copy the whole folder.`));
    document.head.append(script);
  });
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// The same filters and orders as those of the server.
function keeps(params, row, place, masks) {
  if ((params.kind ?? "pair") !== "all" && (row.kind === "pair") !== ((params.kind ?? "pair") === "pair")) return false;
  if (params.group && row.group !== Number(params.group)) return false;
  if (params.label && row.label !== params.label) return false;
  if (params.token && !row.tokens.some(([text]) => matches(params, text))) return false;
  if (params.explanation && !row.explanations.some((text) => text.toLowerCase().includes(params.explanation.toLowerCase()))) return false;
  if (params.mask && !(masks[params.mask] ?? []).includes(place)) return false;
  return Object.entries(params).every(([name, bound]) => {
    const [end, column] = name.split(".");
    if (!column || bound === "") return true;
    // In JSON, null stands for the infinite ratio of an expert that fires in one label only.
    const value = valueOf(row, column);
    return end === "min" ? value >= Number(bound) : value <= Number(bound);
  });
}

function matches(params, text) {
  const [wanted, found] = [params.token.toLowerCase(), text.toLowerCase()];
  return params.whole ? found.trim() === wanted.trim() : found.includes(wanted);
}

function valueOf(row, column) {
  const value = row[column] ?? row.scores?.[column];
  if (value !== null && value !== undefined) return value;
  return column === "label_ratio" && row.count > 0 ? Infinity : NaN;
}

function ordered(rows, params) {
  const sort = params.sort ?? "-label_share";
  const name = sort.replace(/^-/, "");
  if (name === "unit") return sort === "unit" ? rows : [...rows].reverse();
  const sign = sort.startsWith("-") ? -1 : 1;
  const share = (row) => row.tokens.reduce((sum, [text, firings]) => sum + (params.token && matches(params, text) ? firings : 0), 0) / Math.max(row.count, 1);
  const key = rows.map((row) => (name === "match" ? share(row) : valueOf(row, name)));
  const order = rows.map((_, n) => n);
  const compare = (a, b) => {
    const [x, y] = [key[a], key[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return x === y ? a - b : sign * (x < y ? -1 : 1);
  };
  return order.sort(compare).map((n) => rows[n]);
}

export function staticSource(registry) {
  const kept = new Map();
  const read = (name) => {
    if (!kept.has(name)) kept.set(name, (name in registry.found ? Promise.resolve() : load(name)).then(() => unpacked(registry.found[name])));
    return kept.get(name);
  };
  const places = async () => {
    const table = await read("table");
    table.places ??= new Map(table.rows.map((row, n) => [row.name, n]));
    return table;
  };
  const card = async (name) => {
    const { rows, places: known } = await places();
    const info = await read("info");
    if (!known.has(name)) throw new Error(`This page does not have ${name}. It has ${info.shown.toLocaleString("en-US")} of ${info.experts.toLocaleString("en-US")} experts.`);
    const place = known.get(name);
    const shard = await read(`shard-${Math.floor(place / info.shard)}`);
    return { ...rows[place], ...shard[place % info.shard] };
  };
  const unavailable = () => Promise.reject(new Error(LIVE));
  return {
    isStatic: true,
    info: () => read("info"),
    overview: async () => {
      const info = await read("info");
      return { ...info.overview, note: `This page shows ${info.shown.toLocaleString("en-US")} experts of the index. The counts on this view are those of all experts.` };
    },
    async browse(params) {
      const { rows, masks } = await places();
      const found = ordered(rows.filter((row, n) => keeps(params, row, n, masks)), params);
      const offset = Number(params.offset ?? 0);
      return { total: found.length, offset, rows: found.slice(offset, offset + Number(params.count ?? 50)) };
    },
    expert: card,
    async neighbours(name, by) {
      const one = await card(name);
      const { rows, places: known } = await places();
      return (one.neighbours[by] ?? []).map(([other, similarity]) => ({ ...rows[known.get(other)], similarity }));
    },
    weights: unavailable, promoted: unavailable, prompt: unavailable, compare: unavailable, collection: unavailable, save: unavailable,
  };
}
