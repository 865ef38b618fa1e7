// The shelf: all δ of the store as cards, in as many elements as can be seen; grey with the reason where one is of no use here.
import { at, bytes, counted, h } from "./dom.js";

const FIRST = 48; // cards that are built at once; more as they are scrolled to
const TOGETHER = 4; // pictures that are fetched at a time

/** Shows cards. Tells `open` with the name of a δ when its card is chosen. */
export class Shelf extends EventTarget {
  #server;
  #deltas = [];
  #found = [];
  #cards = new Map(); // by name: the card's element and what it was made from
  #used = new Set();
  #limit = FIRST;
  #pictures = new Pictures();
  #list = at("cards");
  #more = at("more");

  constructor(server) {
    super();
    this.#server = server;
    this.#pictures.server = server;
    at("search").addEventListener("input", () => this.#filter());
    at("only").addEventListener("change", () => this.#filter());
    new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && this.#extend(), {
      rootMargin: "400px",
    }).observe(this.#more);
    this.#more.addEventListener("click", () => this.#extend());
  }

  /** Show these δ from now on. */
  set(deltas) {
    this.#deltas = deltas;
    this.#pictures.keep(new Set(deltas.map(({ sha256 }) => sha256)));
    at("only-label").hidden = !deltas.some(({ fault }) => fault);
    this.#filter(false);
  }

  /** Mark those that are in a mix. */
  mark(names) {
    const changed = [...names, ...this.#used].filter((name) => names.has(name) !== this.#used.has(name));
    this.#used = names;
    for (const name of changed) {
      const card = this.#cards.get(name);
      if (card) this.#markOne(card.element, name);
    }
  }

  /** Return the address of a picture of a δ, as soon as it is there; null if it has none. */
  picture(delta, number = 0) {
    return this.#pictures.get(delta, number);
  }

  #filter(first = true) {
    const text = at("search").value.trim().toLowerCase();
    const usable = at("only").checked;
    const words = text.split(/\s+/).filter(Boolean);
    this.#found = this.#deltas.filter((delta) => {
      if (usable && delta.fault) return false;
      const said = `${delta.name} ${delta.title ?? ""} ${delta.prompt ?? ""}`.toLowerCase();
      return words.every((word) => said.includes(word));
    });
    if (first) this.#limit = FIRST;
    const all = this.#deltas.length;
    at("count").textContent =
      this.#found.length === all ? counted(all, "delta") : `${this.#found.length} of ${counted(all, "delta")}`;
    at("none").hidden = this.#found.length > 0;
    at("none").textContent = all
      ? "None of them is called so."
      : "The store is empty: put δ files into its folder, and they appear here.";
    this.#build();
  }

  #extend() {
    if (this.#limit >= this.#found.length) return;
    this.#limit += FIRST;
    this.#build();
  }

  #build() {
    const shown = this.#found.slice(0, this.#limit);
    const cards = shown.map((delta) => {
      const known = this.#cards.get(delta.name);
      if (known && alike(known.delta, delta)) {
        known.delta = delta; // the same object: the next look compares nothing
        return known.element;
      }
      const element = this.#card(delta);
      this.#cards.set(delta.name, { element, delta });
      return element;
    });
    const present = new Set(this.#deltas.map(({ name }) => name));
    for (const name of this.#cards.keys()) if (!present.has(name)) this.#cards.delete(name);
    const same =
      cards.length === this.#list.children.length && cards.every((card, i) => this.#list.children[i] === card);
    if (!same) this.#list.replaceChildren(...cards);
    this.#more.hidden = this.#limit >= this.#found.length;
  }

  #card(delta) {
    const { name, title, fault } = delta;
    const button = h(
      "button",
      { type: "button", className: "card-button", onclick: () => this.#choose(name) },
      this.#thumb(delta),
      h("span", { className: "card-name" }, name),
      h("span", { className: "card-text" }, fault || (title !== name && title) || about(delta)),
      h("span", { className: "card-mark" }),
    );
    const element = h("li", { className: fault ? "card grey" : "card", "data-name": name }, button);
    this.#markOne(element, name);
    return element;
  }

  #thumb(delta) {
    const box = thumb(delta);
    if (delta.pictures && !delta.fault) this.#pictures.later(box, delta);
    return box;
  }

  #markOne(element, name) {
    const used = this.#used.has(name);
    element.classList.toggle("used", used);
    element.querySelector(".card-mark").textContent = used ? "in the mix" : "";
  }

  #choose(name) {
    this.dispatchEvent(new CustomEvent("open", { detail: name }));
  }
}

/** Tell whether a card shows the same of two: its file may stay while its title or its pictures come and go. */
function alike(one, other) {
  return one === other || JSON.stringify(one) === JSON.stringify(other);
}

/** Return what stands for a δ until its picture is there: its first letter on a colour of its own. */
export function thumb({ name, sha256 }) {
  const letter = ([...name.split("/").at(-1)][0] ?? "δ").toUpperCase();
  const hue = parseInt((sha256 ?? "").slice(0, 2) || "0", 16) % 8;
  return h("span", { className: `thumb hue${hue}`, "aria-hidden": "true" }, letter);
}

/** Return what a δ is, in a few words. */
export function about(delta) {
  const kinds = delta.components.map((each) => each.replaceAll("_", " ")).join(", ");
  return [kinds, delta.parameters ? counted(delta.parameters, "layer") : "", bytes(delta.bytes)]
    .filter(Boolean)
    .join(" · ");
}

/** Return what a picture of a card shows, in words. */
export function captionOf(delta, number) {
  return delta.captions[number] || `picture ${number + 1} of the card of ${delta.name}`;
}

/** Fetches pictures of cards when they come into view, a few at a time, each once. */
class Pictures {
  #addresses = new Map();
  #waiting = [];
  #busy = 0;
  #seen = new IntersectionObserver((entries) => this.#look(entries), { rootMargin: "200px" });
  #wanted = new WeakMap();

  later(box, delta) {
    this.#wanted.set(box, delta);
    this.#seen.observe(box);
  }

  #look(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.#seen.unobserve(target);
      const delta = this.#wanted.get(target);
      this.get(delta, 0).then((address) => {
        if (address) target.replaceChildren(h("img", { src: address, alt: "", className: "thumb-image" }));
      });
    }
  }

  /** Let go of pictures of files that are not there any more. */
  keep(digests) {
    for (const [key, found] of this.#addresses) {
      if (digests.has(key.split("/")[0])) continue;
      this.#addresses.delete(key);
      found.then((address) => address && URL.revokeObjectURL(address));
    }
  }

  get(delta, number) {
    if (number >= delta.pictures) return Promise.resolve(null);
    const key = `${delta.sha256}/${number}/${delta.name}`;
    if (!this.#addresses.has(key)) {
      const found = new Promise((resolve) => this.#waiting.push({ delta, number, resolve }));
      this.#addresses.set(key, found);
      found.then((address) => address ?? this.#addresses.delete(key));
      this.#next();
    }
    return this.#addresses.get(key);
  }

  #next() {
    while (this.#busy < TOGETHER && this.#waiting.length) {
      const { delta, number, resolve } = this.#waiting.shift();
      this.#busy++;
      this.server
        .blob("board/picture", { name: delta.name, number })
        .then((blob) => URL.createObjectURL(blob))
        .catch(() => null) // a card without its picture is a card still
        .then((address) => {
          this.#busy--;
          resolve(address);
          this.#next();
        });
    }
  }
}
