// What is painted and how: prompt, seeds, steps; and which view of it is shown.
import { at } from "./dom.js";
import { MOST, VIEWS } from "./state.js";
import { FIRST, seedsShown } from "./job.js";

const TYPING = 500; // milliseconds without a key until a text is painted

/** Shows the settings of a state, and changes them. */
export class Settings {
  #history;
  #limits;
  #base;
  #timer = 0;
  #shown = {}; // by field: what the state said last

  constructor(history, base) {
    this.#history = history;
    this.use(base);
    for (const id of ["prompt", "negative"]) {
      at(id).addEventListener("input", () => this.#typed(id));
      at(id).addEventListener("change", () => this.#set({ [id]: at(id).value }));
    }
    at("seeds").addEventListener("change", () => this.#checked(["seeds"], () => ({ seeds: this.#seeds() })));
    at("dice").addEventListener("click", () => this.#set({ seeds: this.#thrown() }));
    at("more-seeds").addEventListener("click", () => this.#another());
    at("guidance").addEventListener("change", () =>
      this.#checked(["guidance"], () => ({ guidance: numberOf("guidance", -1e6, 1e6) })),
    );
    for (const id of ["first", "steps"])
      at(id).addEventListener("change", () => this.#checked(["first", "steps"], () => ({ stages: this.#stages() })));
    for (const id of ["width", "height"])
      at(id).addEventListener("change", () => this.#checked(["width", "height"], () => ({ size: this.#size() })));
    for (const input of document.querySelectorAll("input[name=view]"))
      input.addEventListener("change", () => this.#set({ view: input.value }));
    for (const input of document.querySelectorAll("input[name=edit]"))
      input.addEventListener("change", () => this.#set({ edit: input.value }));
  }

  /** Take over what a server says of its base: it may be another one than before. */
  use(base) {
    this.#base = base;
    this.#limits = base.limits;
    at("prompt").maxLength = at("negative").maxLength = base.limits.prompt;
    at("guidance").placeholder = base.guidance === null ? "its own" : String(base.guidance);
    at("width").placeholder = String(base.width);
    at("height").placeholder = String(base.height);
    at("steps").placeholder = String(base.steps);
    at("first").placeholder = String(Math.min(FIRST, base.steps));
  }

  /** Show the settings of a state. */
  render(state) {
    const { prompt, negative, seeds, stages, guidance, size } = state;
    const [width, height] = size?.split("x") ?? ["", ""];
    const steps = stages?.at(-1) ?? "";
    const first = stages && stages.length > 1 ? stages[0] : "";
    const shown = { prompt, negative, seeds: seeds.join(", "), guidance: guidance ?? "", first, steps, width, height };
    let all = true;
    for (const [id, value] of Object.entries(shown)) {
      const text = String(value);
      const typing = text === this.#shown[id] && document.activeElement === at(id) && at(id).value !== text;
      this.#shown[id] = text;
      all &&= !typing;
      if (typing) continue; // what stands there is not taken yet
      if (at(id).value !== text) at(id).value = text;
      if (at(id).hasAttribute("aria-invalid")) at(id).removeAttribute("aria-invalid");
    }
    if (all) at("wrong").hidden = true;
    for (const view of VIEWS) at(`view-${view}`).checked = state.view === view;
    for (const side of ["a", "b"]) at(`edit-${side}`).checked = state.edit === side;
    const number = seedsShown(state);
    at("seeds-note").hidden = number === seeds.length;
    at("seeds-note").textContent = `This view shows the first ${number} seeds.`;
  }

  #set(changes, settled = true) {
    clearTimeout(this.#timer);
    this.#history.set({ ...this.#history.state, ...changes }, settled);
  }

  #typed(id) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#set({ [id]: at(id).value }, false);
      this.#history.note(); // whoever loads the page again while the text has the focus keeps it
    }, TYPING);
  }

  /** Change the state by what fields say; say what is wrong with them instead if anything is. */
  #checked(ids, read) {
    for (const id of ids) at(id).removeAttribute("aria-invalid");
    at("wrong").hidden = true;
    try {
      this.#set(read());
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      at("wrong").textContent = error.message;
      at("wrong").hidden = false;
      for (const id of ids) at(id).setAttribute("aria-invalid", "true");
    }
  }

  #seeds() {
    const parts = at("seeds")
      .value.split(/[\s,]+/)
      .filter(Boolean);
    const seeds = [...new Set(parts.map(Number))];
    if (!seeds.length || seeds.length > MOST.seeds || seeds.some((seed) => !Number.isSafeInteger(seed) || seed < 0))
      throw new RangeError(`Seeds are 1 to ${MOST.seeds} whole numbers, such as 0, 1, 2.`);
    return seeds;
  }

  #thrown() {
    const first = crypto.getRandomValues(new Uint32Array(1))[0];
    return this.#history.state.seeds.map((_, index) => (first + index) % 2 ** 32);
  }

  #another() {
    const { seeds } = this.#history.state;
    const next = Math.max(...seeds) + 1;
    const free = [next, ...Array(MOST.seeds).keys()].find((seed) => Number.isSafeInteger(seed) && !seeds.includes(seed));
    if (seeds.length < MOST.seeds) this.#set({ seeds: [...seeds, free] });
  }

  #stages() {
    const most = this.#limits.steps;
    const first = numberOf("first", 1, most);
    const steps = numberOf("steps", 1, most);
    if (first === null && steps === null) return null;
    const last = steps ?? this.#base.steps;
    if (first === null) return last > FIRST ? [FIRST, last] : [last];
    return first < last ? [first, last] : [last];
  }

  #size() {
    const width = numberOf("width", 1, 99_999) ?? this.#base.width;
    const height = numberOf("height", 1, 99_999) ?? this.#base.height;
    const { pixels } = this.#limits;
    if (width * height > pixels)
      throw new RangeError(
        `${width}×${height} has more than the ${pixels.toLocaleString("en")} pixels that this server paints.`,
      );
    return width === this.#base.width && height === this.#base.height ? null : `${width}x${height}`;
  }
}

function numberOf(id, least, most) {
  const input = at(id);
  if (input.value.trim() === "" && !input.validity.badInput) return null;
  const value = input.valueAsNumber;
  if (!Number.isFinite(value) || value < least || value > most || (least === 1 && !Number.isInteger(value)))
    throw new RangeError(
      `${input.labels[0].textContent.trim()}: a ${least === 1 ? "whole number" : "number"} from ${least} to ${most}.`,
    );
  return value;
}
