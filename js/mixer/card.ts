// What is shown of one file: its blocks as bars, and sliders for its weight there and as a whole.
import type { Weight } from "../src/index.js";
import { make, slider, type Slider } from "./elements.js";
import type { Input } from "./worker.js";

/** The part of the page that shows one file, and the weights that are set there. */
export class Card {
  readonly element = make("div", "", "input");
  readonly name: string;
  readonly base: string;
  /** Weights of blocks that have one of their own, by glob. */
  readonly blocks = new Map<string, number>();
  all = 1;
  readonly #selectors: ReadonlySet<string>;
  readonly #sliders = new Map<string, Slider>();
  readonly #changed: () => void;

  constructor(input: Input, base: string, open: boolean, changed: () => void, removed: () => void) {
    this.name = input.name;
    this.base = base;
    this.#changed = changed;
    this.#selectors = new Set(input.blocks.map(({ selector }) => selector).filter(Boolean));
    const whole = make("div", "", "row");
    whole.append(
      make("b", "all of it"),
      make("span"),
      ...slider(`weight of ${input.name}`, this.all, (value) => this.#setAll(value)).elements,
    );
    const details = make("details") as HTMLDetailsElement;
    details.append(make("summary", `${input.blocks.length} blocks`));
    details.ontoggle = () => {
      if (details.open && details.childElementCount === 1) details.append(...this.#rows(input));
    };
    details.open = open;
    const remove = make("button", "Remove");
    remove.setAttribute("aria-label", `Remove ${input.name}`);
    remove.onclick = removed;
    this.element.append(
      make("h3", input.title ? `${input.name} – ${input.title}` : input.name),
      make("p", `${input.parameters} ${input.parameters === 1 ? "weight is" : "weights are"} shifted.`),
      whole,
      details,
      remove,
    );
  }

  /** Return whether the file has shifts in a block. */
  has(selector: string): boolean {
    return this.#selectors.has(selector);
  }

  /** Return the weight in a block. */
  at(selector: string): number {
    return this.blocks.get(selector) ?? this.all;
  }

  /** Return the weight as operations take it, with one of its own for each of these blocks that the file has. */
  weight(selectors: readonly string[]): Weight {
    const where = selectors.filter((selector) => this.has(selector)).map((own) => [own, this.at(own)] as const);
    return where.length ? { default: this.all, where } : this.all;
  }

  #setAll(value: number): void {
    this.all = value;
    for (const [selector, own] of this.#sliders) if (!this.blocks.has(selector)) own.show(value);
    this.#changed();
  }

  #rows({ name: file, blocks }: Input): HTMLElement[] {
    const largest = Math.max(...blocks.map(({ squares }) => Math.sqrt(squares))) || 1;
    return blocks.map(({ label, selector, squares }) => {
      const row = make("div", "", "row");
      const bar = make("div", "", "bar");
      const fill = make("i");
      fill.style.width = `${(100 * Math.sqrt(squares)) / largest}%`;
      bar.append(fill);
      bar.title = `‖δ‖ = ${Math.sqrt(squares).toPrecision(3)}`;
      const name = make("span", label);
      name.title = label;
      row.append(name, bar);
      if (selector) row.append(...this.#slider(label, selector, file));
      return row;
    });
  }

  #slider(label: string, selector: string, file: string): HTMLElement[] {
    const reset = make("button", "×", "reset") as HTMLButtonElement;
    reset.title = "take the file's weight again";
    reset.setAttribute("aria-label", `Reset ${label} in ${file}`);
    const own = slider(`weight of ${label} in ${file}`, this.at(selector), (value) => {
      this.blocks.set(selector, value);
      reset.disabled = false;
      this.#changed();
    });
    reset.disabled = !this.blocks.has(selector);
    reset.onclick = () => {
      this.blocks.delete(selector);
      reset.disabled = true;
      own.show(this.all);
      this.#changed();
    };
    this.#sliders.set(selector, own);
    return [...own.elements, reset];
  }
}
