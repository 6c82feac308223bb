// Deep links: `#/browse?label=german` names a view and its parameters.

export function parse(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, ...rest] = path.split("/");
  return { view: view || "overview", rest: rest.map(decode), params: new URLSearchParams(query ?? "") };
}

export function href(view, rest = [], params = {}) {
  const path = [view, ...[rest].flat()].map((part) => encodeURIComponent(part).replaceAll("%3A", ":")).join("/");
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== "" && value !== false) words.set(name, value === true ? "1" : String(value));
  }
  const query = words.toString();
  return `#/${path}${query ? "?" + query : ""}`;
}

export function expertLink(name) {
  return href("expert", [name]);
}

// Changes the address without a new entry of the history; the view has drawn itself already.
export function remember(link) {
  history.replaceState(null, "", link);
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
