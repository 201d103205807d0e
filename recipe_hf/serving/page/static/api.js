// Requests to the server that this page came from: JSON, streams, and problems in plain words.

const KEY = "recipe-hf.key";
const NAMESPACE = "recipe-hf.namespace";

/** What the server, or the way to it, did not like: RFC 9457, or an error as OpenAI's API writes it. */
export class Problem extends Error {
  constructor(title, detail = "", status = 0, errors = []) {
    super(title);
    Object.assign(this, { title, detail, status, errors });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** The namespace that is worked in; null is the key's own, or the unnamed one. */
export const namespace = {
  get: () => sessionStorage.getItem(NAMESPACE),
  set: (value) => (value ? sessionStorage.setItem(NAMESPACE, value) : sessionStorage.removeItem(NAMESPACE)),
};

/** Asks for a key where the server wants one; whether to try again with it. */
let askForKey = async () => false;
export const onUnauthorized = (ask) => (askForKey = ask);

/** The response, if it is a good one. `query` without what is null; `body` is sent as JSON, a string as it is. */
export async function send(method, path, { body, query = {}, headers = {}, signal } = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  const type = typeof body === "string" ? "application/x-ndjson" : "application/json";
  for (;;) {
    const used = key.get();
    const sent = {
      ...(body === undefined ? {} : { "Content-Type": type }),
      ...(used ? { Authorization: `Bearer ${used}` } : {}),
      ...headers,
    };
    const content = typeof body === "string" ? body : JSON.stringify(body);
    const response = await reach(url, { method, headers: sent, body: content, signal });
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status !== 401 || !(await askForKey(used, problem))) throw problem;
  }
}

/** The JSON of a response, null where it has none. */
export async function call(method, path, options) {
  const response = await send(method, path, options);
  return response.status === 204 ? null : response.json();
}

/** The same of the knowledge of the namespace that is worked in. */
export function knowledge(method, path = "", { query = {}, ...options } = {}) {
  return call(method, `v1/knowledge${path}`, { ...options, query: { namespace: namespace.get(), ...query } });
}

/** The chunks of a stream of server-sent events. */
export async function* chunks(response) {
  for await (const line of lines(response)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") continue;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem("The answer broke off.", chunk.error.message, chunk.error.code);
    yield chunk;
  }
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split(/\r?\n/);
      rest = parts.pop();
      yield* parts;
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached.", "It may have been stopped, or this machine is offline.");
  }
}

// What a status means, in plain words; the server's own say what exactly.
const MEANINGS = {
  401: "A key is needed.",
  403: "This is not allowed.",
  404: "It is not there.",
  409: "It has changed meanwhile.",
  413: "It is too large.",
  422: "It cannot be taken as it is.",
  429: "The server has too much to do.",
  500: "The server made a mistake.",
  503: "The server cannot do it now.",
  507: "The disk of the server is full.",
};

async function problemOf(response) {
  const { status } = response;
  const title = MEANINGS[status] ?? `The server answered ${status} ${response.statusText}`.trim() + ".";
  const found = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  const errors = found.errors ?? [];
  const detail = errors.length ? "" : (found.error?.message ?? (typeof found.detail === "string" ? found.detail : ""));
  return new Problem(title, [detail, wait && `Try again in ${wait} s.`].filter(Boolean).join(" "), status, errors);
}
