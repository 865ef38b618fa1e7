// Requests to the server: with the key if there is one, errors as sentences, and what happens while it is gone.

/** What a server answers instead of what was asked for, as a sentence. */
export class Refused extends Error {
  constructor(message, status, wait = 0) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

/** The server did not answer at all. */
export class Gone extends Error {}

const KEY = "svdiff-key";
const WAITS = [500, 1000, 2000, 3000];

/** The server as this page knows it. */
export class Server extends EventTarget {
  #key = kept();
  #waiting = null;
  gone = false;

  /** Take a key from now on, and keep it as long as this tab; return whether it can be one. */
  take(key) {
    if (!/^[!-~]+$/.test(key.trim())) return false; // no request can be made with it: the server would seem to be gone
    this.#key = key.trim();
    try {
      sessionStorage.setItem(KEY, this.#key);
    } catch {
      // a browser that keeps nothing: it is asked for again when the page is loaded again
    }
    return true;
  }

  /** Return what a path answers as JSON; null if there is nothing new (204). */
  async get(path, query = {}) {
    const text = new URLSearchParams(query).toString();
    const answer = await this.#ask(text ? `${path}?${text}` : path);
    return answer.status === 204 ? null : answer.json();
  }

  /** Return a file that a path answers. */
  async blob(path, query) {
    return (await this.#ask(`${path}?${new URLSearchParams(query)}`)).blob();
  }

  /** Send JSON, and return the answer. */
  post(path, value, signal) {
    return this.#ask(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(value),
      signal,
    });
  }

  /** Send the bytes of a file, and return what comes of it as JSON. */
  async send(path, content) {
    const headers = { "content-type": "application/octet-stream" };
    return (await this.#ask(path, { method: "POST", headers, body: content })).json();
  }

  async #ask(path, options = {}) {
    const headers = { ...options.headers };
    if (this.#key) headers.authorization = `Bearer ${this.#key}`;
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      this.lost();
      throw new Gone("the server does not answer");
    }
    if (answer.ok) return answer;
    const refused = await refusal(answer);
    if (answer.status === 401) this.dispatchEvent(new CustomEvent("key", { detail: Boolean(this.#key) }));
    throw refused;
  }

  /** Note that the server does not answer, and look until it does. */
  lost() {
    if (this.#waiting) return;
    this.gone = true;
    this.dispatchEvent(new Event("gone"));
    let tries = 0;
    const look = async () => {
      try {
        const answer = await fetch("readyz", { cache: "no-store" });
        if (answer.ok) {
          this.#waiting = null;
          this.gone = false;
          this.dispatchEvent(new Event("back"));
          return;
        }
      } catch {
        // still gone
      }
      this.#waiting = setTimeout(look, WAITS[Math.min(tries++, WAITS.length - 1)]);
    };
    this.#waiting = setTimeout(look, WAITS[0]);
  }
}

/** Return the key that this tab keeps; empty for none. */
function kept() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // a browser that keeps nothing for pages
  }
}

async function refusal(answer) {
  let message = `the server answered ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // no JSON: a proxy's own page
  }
  return new Refused(message, answer.status, Number(answer.headers.get("retry-after") ?? 0));
}

/** Yield the objects of an answer that comes line by line. */
export async function* lines(answer) {
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = parts.pop();
      for (const part of parts) if (part) yield JSON.parse(part);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
