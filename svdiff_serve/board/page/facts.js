// What the server knows of δ: the list, profiles and interference, each asked for once for each content.

/** Keeps what is known. */
export class Facts {
  #server;
  #deltas = new Map();
  #version = "";
  #known = new Map();
  started = null; // when the server began whose list it is

  constructor(server) {
    this.#server = server;
  }

  /** Look whether the list has changed; return whether it has. */
  async refresh() {
    const found = await this.#server.get("board/deltas", { version: this.#version });
    if (found === null || found.version === this.#version) return false;
    this.#version = found.version;
    this.started = found.started;
    this.#deltas = new Map(found.deltas.map((delta) => [delta.name, delta]));
    return true;
  }

  /** Forget all: another server answers now. */
  forget() {
    this.#version = "";
    this.#known.clear();
  }

  /** Return all δ, sorted by name. */
  all() {
    return [...this.#deltas.values()];
  }

  /** Return what the list says of a δ; undefined if it is not there. */
  delta(name) {
    return this.#deltas.get(name);
  }

  /** Return the digest of a δ; empty if it is not there. */
  digest(name) {
    return this.#deltas.get(name)?.sha256 ?? "";
  }

  /** Return where a δ acts. */
  profile(name) {
    return this.#once(`profile ${this.digest(name)} ${name}`, "board/profile", { name });
  }

  /** Return how two δ lie to each other. */
  interference(a, b) {
    return this.#once(`pair ${this.digest(a)} ${a} ${this.digest(b)} ${b}`, "board/interference", { a, b });
  }

  #once(key, path, query) {
    if (!this.#known.has(key)) {
      if (this.#known.size >= 300) this.#known.delete(this.#known.keys().next().value);
      const found = this.#server.get(path, query);
      found.catch(() => this.#known.delete(key));
      this.#known.set(key, found);
    }
    return this.#known.get(key);
  }
}
