// A slider with its number: tells each move, and its end, whether by hand, by keys that are held, or typed.
import { h, few } from "./dom.js";

/**
 * Make a slider.
 *
 * @param {{label: string, min: number, max: number, step: number, typed?: boolean, mark?: number}} about what it is.
 * @param {(value: number, settled: boolean) => void} tell what is called with each value.
 */
export function slider({ label, min, max, step, typed = false }, tell) {
  const range = h("input", { type: "range", min, max, step, "aria-label": label });
  const number = typed
    ? h("input", { type: "number", step: "any", "aria-label": `${label}, as a number`, className: "number" })
    : h("output", { className: "number" });
  let held = false; // a key that repeats: the move ends when it is let go

  const move = (settled) => {
    const value = Number(range.value);
    write(value);
    tell(value, settled);
  };
  const place = (value) => `${(100 * (Math.min(max, Math.max(min, value)) - min)) / (max - min)}%`;
  const write = (value) => {
    range.style.setProperty("--low", place(Math.min(0, value)));
    range.style.setProperty("--high", place(Math.max(0, value)));
    if (typed) number.value = String(value);
    else number.textContent = few(value);
  };
  range.addEventListener("keydown", (event) => (held = event.repeat));
  range.addEventListener("keyup", () => held && ((held = false), move(true)));
  range.addEventListener("blur", () => held && ((held = false), move(true)));
  range.addEventListener("input", () => move(false));
  range.addEventListener("change", () => move(!held));
  if (typed) {
    number.addEventListener("change", () => {
      const value = number.valueAsNumber;
      const fine = Number.isFinite(value) && Math.abs(value) <= 1e6;
      number.setAttribute("aria-invalid", String(!fine));
      if (!fine) return;
      range.value = String(value);
      write(value);
      tell(value, true);
    });
  }
  return {
    range,
    number,
    /** Show a value that came from elsewhere. */
    show(value) {
      if (Number(range.value) !== value) range.value = String(value);
      write(value);
      if (typed) number.removeAttribute("aria-invalid");
    },
  };
}
