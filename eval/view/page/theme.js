// Light, dark, or the colours of the system.

const ORDER = ["system", "light", "dark"];

export function apply(name = stored()) {
  if (name === "system") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", name);
  return name;
}

export function turn() {
  const name = ORDER[(ORDER.indexOf(stored()) + 1) % ORDER.length];
  try {
    localStorage.setItem("monet-theme", name);
  } catch {
    // A browser may forbid storage; the choice then lasts until the page is closed.
  }
  return apply(name);
}

function stored() {
  const name = localStorage.getItem("monet-theme");
  return ORDER.includes(name) ? name : "system";
}
