// Elements of the page.

/** Return the element with an id. */
export function at<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

/** Make an element with a text and a class. */
export function make(tag: string, text = "", kind = ""): HTMLElement {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = kind;
  return element;
}

/** A slider with its number beside it, which takes what the slider has no step for. */
export interface Slider {
  elements: HTMLElement[];
  show(value: number): void;
}

/** Make a slider; what a person sets is passed on. */
export function slider(label: string, value: number, changed: (value: number) => void): Slider {
  const [range, number] = ["range", "number"].map((type) => {
    const input = make("input") as HTMLInputElement;
    Object.assign(input, { type, min: type === "range" ? "-2" : "", max: type === "range" ? "2" : "", step: "0.05" });
    input.setAttribute("aria-label", type === "range" ? label : `${label}, as a number`);
    return input;
  }) as [HTMLInputElement, HTMLInputElement];
  number.step = "any";
  let current = value;
  const show = (shown: number): void => {
    current = shown;
    range.value = String(shown);
    if (document.activeElement !== number || Number(number.value) !== shown) number.value = String(shown);
  };
  const take = (input: HTMLInputElement): void => {
    const taken = input.valueAsNumber;
    if (!Number.isFinite(taken)) return; // while it is typed
    show(taken);
    changed(taken);
  };
  range.oninput = () => take(range);
  number.oninput = () => take(number);
  number.onblur = () => (number.value = String(current)); // where it was left empty
  show(value);
  return { elements: [range, number], show };
}
