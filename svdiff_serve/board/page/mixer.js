// The mix that is edited: one card for each δ with its weight, and sliders for its subsets and blocks.
import { at, h, percent } from "./dom.js";
import { labelOf } from "./chart.js";
import { thumb } from "./shelf.js";
import { slider } from "./slider.js";
import { withMix, withPart, withTerm } from "./state.js";

/** Shows the mix of a state, and changes it. Tells `open` with a name whose card is wanted. */
export class Mixer extends EventTarget {
  #history;
  #facts;
  #shelf;
  #rows = new Map(); // by side and name
  #list = at("terms");

  constructor(history, facts, shelf) {
    super();
    this.#history = history;
    this.#facts = facts;
    this.#shelf = shelf;
  }

  /** Show the mix that is edited. */
  render(state) {
    const { edit: side } = state;
    const { terms } = state[side];
    const rows = terms.map((term) => this.#row(side, term.name));
    const elements = rows.map(({ element }) => element);
    const same =
      elements.length === this.#list.children.length && elements.every((e, i) => this.#list.children[i] === e);
    if (!same) this.#list.replaceChildren(...elements);
    terms.forEach((term, index) => rows[index].show(term));
    at("empty").hidden = terms.length > 0;
    at("empty").textContent =
      `Mix ${side.toUpperCase()} is empty: the base alone is painted. Choose a delta to add it.`;
    this.#tidy(state);
  }

  /** Move the focus to the slider of a δ. */
  focus(name) {
    this.#rows.get(`${this.#history.state.edit} ${name}`)?.weight.range.focus();
  }

  #tidy(state) {
    const present = new Set(["a", "b"].flatMap((side) => state[side].terms.map(({ name }) => `${side} ${name}`)));
    for (const key of this.#rows.keys()) if (!present.has(key)) this.#rows.delete(key);
  }

  #row(side, name) {
    const key = `${side} ${name}`;
    if (!this.#rows.has(key)) this.#rows.set(key, this.#make(side, name));
    return this.#rows.get(key);
  }

  #make(side, name) {
    const change = (with_, settled) => this.#history.set(withTerm(this.#history.state, side, name, with_), settled);
    const weight = slider({ label: `weight of ${name}`, min: -2, max: 2, step: 0.01, typed: true }, (value, settled) =>
      change(() => ({ weight: value }), settled),
    );
    let face = thumb({ name });
    let faceOf = ""; // the file and its picture that it shows
    const look = h("button", { type: "button", className: "link", onclick: () => this.#open(name) }, name);
    look.setAttribute("aria-label", `${name}: where it acts`);
    const off = h(
      "button",
      { type: "button", className: "icon", title: "Take it out", onclick: () => this.#remove(side, name) },
      "×",
    );
    off.setAttribute("aria-label", `Take ${name} out of the mix`);
    const fault = h("p", { className: "fault", hidden: true });
    const parts = new Parts(name, this.#facts, (selector, factor, settled, order) =>
      change((term) => ({ parts: withPart(term.parts, order, selector, factor) }), settled),
    );
    const element = h(
      "li",
      { className: "term", "data-name": name },
      h("div", { className: "term-head" }, face, look, off),
      h("div", { className: "slide main" }, weight.range, weight.number),
      fault,
      parts.element,
    );
    const show = (term) => {
      const now = this.#facts.delta(name);
      if (now && faceOf !== `${now.sha256} ${now.pictures}`) {
        faceOf = `${now.sha256} ${now.pictures}`;
        const other = thumb(now);
        face.replaceWith(other);
        face = other;
        this.#shelf
          .picture(now)
          .then((src) => src && other.replaceChildren(h("img", { src, alt: "", className: "thumb-image" })));
      }
      weight.show(term.weight);
      fault.hidden = Boolean(now && !now.fault);
      fault.textContent = now ? now.fault : "It is not in the store here: put its file there, or take it out.";
      parts.show(term.parts);
    };
    return { element, show, weight };
  }

  #open(name) {
    this.dispatchEvent(new CustomEvent("open", { detail: name }));
  }

  #remove(side, name) {
    const state = this.#history.state;
    const index = state[side].terms.findIndex((each) => each.name === name);
    this.#history.set(
      withMix(
        state,
        side,
        state[side].terms.filter((each) => each.name !== name),
      ),
    );
    const next = this.#list.children[Math.min(index, this.#list.children.length - 1)];
    (next?.querySelector(".icon") ?? at("search")).focus();
  }
}

/** The sliders of subsets and blocks of one δ, built when they are wanted. */
class Parts {
  #name;
  #facts;
  #tell;
  #rows = new Map(); // by selector
  #order = [];
  #given = [];
  #built = null; // the digest of the file that they are of; null until they are wanted
  #place = h("div", { className: "parts" });
  #count = h("span", { className: "parts-count" });

  constructor(name, facts, tell) {
    this.#name = name;
    this.#facts = facts;
    this.#tell = tell;
    const summary = h("summary", {}, "Blocks and subsets", this.#count);
    this.element = h("details", { className: "parts-box" }, summary, this.#place);
    this.element.addEventListener("toggle", () => this.element.open && !this.#rows.size && this.#build());
  }

  /** Tell whether they are of a file that another one has replaced. */
  get #old() {
    const digest = this.#facts.digest(this.#name);
    return this.#built !== null && digest !== "" && digest !== this.#built;
  }

  show(parts) {
    this.#given = parts;
    this.#count.textContent = parts.length ? ` · ${parts.length} set` : "";
    if (this.#old || (this.#rows.size && parts.some(([selector]) => !this.#rows.has(selector)))) this.#build();
    const factors = new Map(parts);
    for (const [selector, row] of this.#rows) {
      const factor = factors.get(selector);
      row.element.classList.toggle("set", factor !== undefined);
      row.off.hidden = factor === undefined;
      row.slider.show(factor ?? 1, factor !== undefined);
    }
  }

  async #build() {
    this.#rows.clear();
    this.#built = this.#facts.digest(this.#name);
    this.#place.textContent = "…";
    let profile;
    try {
      profile = await this.#facts.profile(this.#name);
    } catch (error) {
      this.#place.textContent = error.message;
      return;
    }
    const own = distinct(profile);
    const listed = new Set([...own, ...profile.blocks].map(({ selector }) => selector));
    const others = this.#given.filter(([selector]) => !listed.has(selector)); // of a link, or of a lineage
    const known = (selector) => profile.subsets.find((each) => each.selector === selector) ?? { selector, energy: 0 };
    const subsets = [...others.map(([selector]) => known(selector)), ...own];
    this.#order = [...subsets, ...profile.blocks].map(({ selector }) => selector);
    const several = new Set(profile.blocks.map(({ component }) => component)).size > 1;
    const row = (each, label) => this.#row(each, label, profile);
    this.#place.replaceChildren(
      h(
        "p",
        { className: "hint" },
        "Factors of the weight above. A block’s slider counts in its block, whatever its subset says.",
      ),
      ...(subsets.length
        ? [h("h3", { className: "minor" }, "Subsets"), ...subsets.map((each) => row(each, each.selector))]
        : []),
      h("h3", { className: "minor" }, "Blocks"),
      ...profile.blocks.map((each) => row(each, labelOf(each, several))),
    );
    this.show(this.#given);
  }

  #row({ selector, energy }, label, profile) {
    const about = `factor of ${label} in ${this.#name}`;
    const own = slider({ label: about, min: -1, max: 2, step: 0.05 }, (value, settled) =>
      this.#tell(selector, value, settled, this.#order),
    );
    const off = h("button", {
      type: "button", className: "icon", hidden: true, title: "As the rest", "aria-label": `${label} in ${this.#name}: as the rest`,
      onclick: () => {
        this.#tell(selector, null, true, this.#order);
        own.range.focus();
      },
    }, "↺"); // prettier-ignore
    const fill = h("i");
    const share = profile.energy ? energy / profile.energy : 0;
    fill.style.width = `${100 * Math.sqrt(share)}%`;
    const name = h(
      "span",
      { className: "part-name", title: `${percent(share)} of its energy` },
      label,
      h("span", { className: "meter" }, fill),
    );
    const element = h("div", { className: "slide part" }, name, own.range, own.number, off);
    this.#rows.set(selector, { element, slider: own, off });
    return element;
  }
}

/** Return the subsets that are neither all of a δ nor a block. */
function distinct({ subsets, layers, blocks }) {
  const taken = new Set(blocks.map(({ selector }) => selector));
  return subsets.filter(({ selector, parameters }) => parameters < layers.length && !taken.has(selector));
}
