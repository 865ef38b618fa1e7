// What a selector names (section 7.5).
import { addressed } from "./addresses.js";
import { InputError, SelectionError } from "./errors.js";
import type { JsonObject } from "./json.js";
import type { Layout } from "./parameter.js";
import { subset } from "./subsets.js";

export interface SelectOptions {
  /** The width of latents that addresses count from, instead of the base's own. */
  sampleSize?: number | undefined;
}

/** Return the names that selectors name out of those at hand. Raises SelectionError. */
export function names(
  layouts: readonly Layout[],
  selectors: readonly string[],
  base: JsonObject,
  options: SelectOptions = {},
): Set<string> {
  const { sampleSize } = options;
  if (sampleSize !== undefined && (!Number.isSafeInteger(sampleSize) || sampleSize < 1)) {
    throw new InputError(`sample_size: ${String(sampleSize)} is no integer from 1`, "sample_size");
  }
  if (!Array.isArray(selectors) || !selectors.every((selector) => typeof selector === "string"))
    throw new InputError("selectors: give an array of texts", "selectors");
  if (!selectors.length) throw new SelectionError("no selector is given", "selectors");
  const negative = selectors.filter((selector) => selector.startsWith("!"));
  const positive = selectors.filter((selector) => !selector.startsWith("!"));
  const result = new Set(positive.length ? [] : layouts.map(({ name }) => name));
  for (const selector of positive) for (const name of one(layouts, selector, base, options)) result.add(name);
  for (const selector of negative)
    for (const name of one(layouts, selector.slice(1), base, options)) result.delete(name);
  if (!result.size) throw new SelectionError(`${selectors.join(" ")}: nothing is left`, selectors.join(" "));
  return result;
}

function one(layouts: readonly Layout[], selector: string, base: JsonObject, options: SelectOptions): string[] {
  if (layouts.some(({ name }) => name === selector)) return [selector];
  const named =
    subset(layouts, selector) ?? addressed(layouts, selector, base, options.sampleSize) ?? matching(layouts, selector);
  if (named === undefined) {
    throw new SelectionError(`${selector}: it is no parameter, subset, address or glob`, selector);
  }
  if (!named.length) throw new SelectionError(`${selector}: nothing here has that name`, selector);
  return named.map(({ name }) => name);
}

/** Return what a glob matches, or undefined where the selector is none. */
function matching(layouts: readonly Layout[], selector: string): Layout[] | undefined {
  if (!/[*?[]/.test(selector)) return undefined;
  const pattern = new RegExp(`^${globPattern(selector)}$`, "su");
  return layouts.filter(({ name }) => pattern.test(name));
}

/** Return the regular expression of a glob. A bracket without its end stands for itself. */
function globPattern(glob: string): string {
  return glob.replace(
    /\*|\?|\[(!?)(\]?[^\]]*)\]|[^]/gu,
    (part, not: string | undefined, inside: string | undefined) => {
      if (part === "*") return ".*";
      if (part === "?") return ".";
      if (inside === undefined) return escaped(part);
      return `[${not ? "^" : ""}${ranges(inside)}]`;
    },
  );
}

/** Return the inside of a bracket, without ranges that run backwards. */
function ranges(inside: string): string {
  return inside.replace(
    /([^])-([^])|([^])/gu,
    (_, first: string | undefined, last: string | undefined, alone: string | undefined) => {
      if (alone !== undefined) return escaped(alone);
      return (first as string) <= (last as string) ? `${escaped(first as string)}-${escaped(last as string)}` : "";
    },
  );
}

function escaped(char: string): string {
  return /[A-Za-z0-9_]/.test(char) ? char : `\\u{${(char.codePointAt(0) as number).toString(16)}}`;
}
