// Small helpers for elements and numbers. Texts are always text, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** Set what an element is told: handlers as onclick, aria-… and data-… as attributes, all else as properties. */
function tell(element, given) {
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && !key.includes("-")) element[key] = value;
    else element.setAttribute(key, value);
  }
}

/** Make an element of HTML. */
export function h(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  tell(element, given);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Make an element of SVG; everything given is an attribute. */
export function svg(tag, given = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(given)) if (value !== undefined) element.setAttribute(key, value);
  element.append(...children.filter(Boolean));
  return element;
}

/** Return the element of an id. */
export function at(id) {
  return document.getElementById(id);
}

/** Return a number as people read it: few digits, and a true minus. */
export function few(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 10 ** -digits / 2))
    return value.toExponential(1).replace("-", "−");
  return String(Number(value.toFixed(digits))).replace("-", "−");
}

/** Return a share as per cent. */
export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = 100 * share;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)} %`;
}

/** Return a count with its noun. */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** Return a size of a file. */
export function bytes(size) {
  if (size < 1000) return `${size} B`;
  return size < 1e6 ? `${Math.round(size / 1e3)} kB` : `${(size / 1e6).toFixed(1)} MB`;
}

/** Return how many singular values sums make 0, each of a side; empty for none. */
export function clippedWords(checks) {
  const sides = checks.length > 1 ? ["A ", "B "] : [""];
  const counts = checks.map(({ clipped }, index) => clipped && `${sides[index]}${clipped.toLocaleString("en")}`);
  const some = counts.filter(Boolean).join(" and ");
  return some && `${some} singular value${some === "1" ? "" : "s"} cut off at 0`;
}

let told = 0;

/** Say something that is not seen otherwise to people who listen to the page, and show it for a while. */
export function say(text, kind = "") {
  const place = at("toast");
  place.textContent = text;
  place.className = `toast ${kind}`;
  place.hidden = false;
  const mine = ++told;
  setTimeout(
    () => {
      if (told === mine) place.hidden = true;
    },
    Math.min(12_000, Math.max(4000, 60 * text.length)),
  );
}

/** Give a file to whoever looks at the page. */
export function download(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 30_000);
}
