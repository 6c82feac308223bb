// Where the page's data comes from: the server, or the files of a static page.

import { staticSource } from "./static.js";

export class Refusal extends Error {}

const LOST = "The server of `monet view` does not answer. Start it again, and open the address that it prints.";

async function answer(path, options) {
  let response;
  try {
    response = await fetch(`api/${path}`, { credentials: "omit", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(LOST);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text;
  try {
    message = JSON.parse(text).error;
  } catch {
    // The guard answers with plain text.
  }
  throw new Refusal(message || `The server answered with status ${response.status}.`);
}

function post(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

const part = encodeURIComponent;

function liveSource() {
  const get = async (path) => (await answer(path)).json();
  const send = async (path, body = {}) => (await answer(path, post(body))).json();
  return {
    isStatic: false,
    info: () => get("info"),
    overview: () => get("overview"),
    browse: (params) => get(`experts?${new URLSearchParams(params)}`),
    expert: (name) => get(`expert/${part(name)}`),
    neighbours: (name, by) => get(`expert/${part(name)}/neighbours?by=${part(by)}&count=8`),
    weights: (name) => send(`expert/${part(name)}/weights`),
    promoted: (name, how) => send(`expert/${part(name)}/promoted/${part(how)}`),
    prompt: (text, group) => send("prompt", { text, group }),
    compare: (text, collection) => send("compare", { text, collection }),
    collection: (collection) => send("collection", { collection }),
    save: (body) => send("masks", body),
    async *continuation(body, signal) {
      const response = await answer("continue", post(body, signal));
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let waiting = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const lines = (waiting + value).split("\n");
        waiting = lines.pop();
        for (const line of lines) yield JSON.parse(line);
      }
    },
  };
}

export function openSource() {
  return globalThis.MONET_PAGE ? staticSource(globalThis.MONET_PAGE) : liveSource();
}
