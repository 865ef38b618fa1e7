// How the δ of the mix that is edited lie to each other, pair by pair.
import { at, few, h, percent } from "./dom.js";
import { signed, togetherWords } from "./chart.js";

const MOST = 15; // pairs: of six δ

/** Shows the pairs of a mix. */
export class Pairs {
  #facts;
  #key = "";

  constructor(facts) {
    this.#facts = facts;
  }

  /** Show the pairs of the mix that is edited. */
  async render(state) {
    const terms = state[state.edit].terms.filter(({ name, weight }) => weight && this.#facts.delta(name)?.fault === "");
    const pairs = terms.flatMap((a, i) => terms.slice(i + 1).map((b) => [a, b]));
    const key = JSON.stringify(
      pairs.map(([a, b]) => [
        a.name,
        b.name,
        a.weight * b.weight < 0,
        this.#facts.digest(a.name),
        this.#facts.digest(b.name),
      ]),
    );
    at("pairs-box").hidden = !pairs.length;
    if (key === this.#key) return;
    this.#key = key;
    const found = await Promise.all(pairs.slice(0, MOST).map(([a, b]) => this.#row(a, b)));
    if (key !== this.#key) return; // another mix meanwhile
    if (!found.every(({ known }) => known)) this.#key = ""; // they are asked for again
    const rows = found.map(({ row }) => row);
    if (pairs.length > MOST) rows.push(h("li", {}, `and ${pairs.length - MOST} pairs more`));
    at("pairs").replaceChildren(...rows);
  }

  async #row(a, b) {
    try {
      const found = signed(await this.#facts.interference(a.name, b.name), a.weight, b.weight);
      return { known: true, row: pairRow(`${a.name} × ${b.name}`, found) };
    } catch (error) {
      const words = h("span", { className: "pair-words" }, error.message);
      return { known: false, row: h("li", { className: "pair" }, h("b", {}, `${a.name} × ${b.name}`), h("span"), words) };
    }
  }
}

/** Return a line on two δ: a gauge from −1 to 1, and words. */
export function pairRow(title, found) {
  const gauge = h("span", { className: "gauge", "aria-hidden": "true" }, h("i"));
  const cosine = found.cosine ?? 0;
  const fill = gauge.firstChild;
  fill.className = cosine < 0 ? "against" : "along";
  fill.style.left = `${50 + 50 * Math.min(0, cosine)}%`;
  fill.style.width = `${Math.max(1, 50 * Math.abs(cosine))}%`;
  const figures =
    found.cosine === null
      ? ""
      : `cosine ${few(found.cosine)} · ${percent(found.conflicts)} of the numbers pull apart · ${percent(found.shared)} of the energy in layers of both`;
  return h(
    "li",
    { className: "pair" },
    h("b", {}, title),
    gauge,
    h("span", { className: "pair-words" }, togetherWords(found)),
    h("span", { className: "pair-figures" }, figures),
  );
}
