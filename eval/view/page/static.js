// The data of a page without a server: files that register themselves, because a page from disk cannot fetch.

export function staticSource(registry) {
  const unavailable = () => Promise.reject(new Error("This page has no model. Run `monet view INDEX --model MODEL` for it."));
  return { isStatic: true, info: async () => registry.info, overview: unavailable };
}
