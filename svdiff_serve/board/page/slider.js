// A slider with its number: tells each move, and its end, whether by hand, by keys that are held, or typed.
import { h, few, say } from "./dom.js";

const LARGEST = 1e6; // what is typed lies between minus this and this

/**
 * Make a slider.
 *
 * @param {{label: string, min: number, max: number, step: number, typed?: boolean, mark?: number}} about what it is.
 * @param {(value: number | null, settled: boolean) => void} tell what is called with each value; null takes it back.
 */
export function slider({ label, min, max, step, typed = false }, tell) {
  const range = h("input", { type: "range", min, max, step, "aria-label": label });
  const number = typed
    ? h("input", { type: "number", step: "any", "aria-label": `${label}, as a number`, className: "number" })
    : h("output", { className: "number" });
  let held = false; // a key that repeats: the move ends when it is let go
  let shown = Number.NaN; // what came from elsewhere last
  let given = null; // the same; null where it is not set, and `shown` is what counts then
  let touched = undefined; // what was given when a finger came down

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
  // A finger that comes down on it and scrolls the page moves nothing: the browser takes the pointer from it.
  range.addEventListener("pointerdown", ({ pointerType }) => (touched = pointerType === "touch" ? given : undefined));
  range.addEventListener("pointercancel", () => touched !== undefined && tell(touched, true));
  range.addEventListener("keydown", (event) => (held = event.repeat));
  range.addEventListener("keyup", () => held && ((held = false), move(true)));
  range.addEventListener("blur", () => held && ((held = false), move(true)));
  range.addEventListener("input", () => move(false));
  range.addEventListener("change", () => move(!held));
  if (typed) {
    number.addEventListener("change", () => {
      const value = number.valueAsNumber;
      const fine = Number.isFinite(value) && Math.abs(value) <= LARGEST;
      number.setAttribute("aria-invalid", String(!fine));
      if (!fine) {
        const most = LARGEST.toLocaleString("en");
        say(`The ${label} is a number from −${most} to ${most}: ${few(shown)} stays.`, "warn");
        return;
      }
      range.value = String(value);
      write(value);
      tell(value, true);
    });
  }
  return {
    range,
    number,
    /** Show a value that came from elsewhere; `set` is false where it only counts as long as there is no other. */
    show(value, set = true) {
      given = set ? value : null;
      const typing = typed && value === shown && document.activeElement === number; // it is not taken yet
      shown = value;
      if (typing) return;
      if (Number(range.value) !== value) range.value = String(value);
      write(value);
      if (typed) number.removeAttribute("aria-invalid");
    },
  };
}
