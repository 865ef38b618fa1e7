// What a result is made of, and what it says of itself (sections 7.1, 7.2, 7.4 and 8).
import { Delta } from "../delta.js";
import { BaseMismatchError, InputError } from "../errors.js";
import { equal, fromPlain, JsonError, type Json, type JsonObject } from "../json.js";
import { lineageOf } from "../lineage.js";
import { parameter, lengthOf, type Layout, type Parameter, type Run, type Stored } from "../parameter.js";

/** Return the finest runs that cover those of all inputs, and the null count (section 7.2). */
export function combineRuns(
  size: number,
  inputs: readonly Pick<Layout, "tied" | "null">[],
): { tied: Run[]; null: number } {
  const runs = inputs.flatMap(({ tied }) => tied).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const joined: Run[] = [];
  for (const [first, last] of runs) {
    const before = joined.at(-1);
    if (before && first <= before[1]) joined[joined.length - 1] = [before[0], Math.max(last, before[1])];
    else joined.push([first, last]);
  }
  let nulls = Math.max(...inputs.map((input) => input.null));
  const covered = size - nulls;
  for (const [first, last] of joined) if (last >= covered) nulls = Math.max(nulls, size - first);
  return { tied: joined.filter(([, last]) => last < size - nulls), null: nulls };
}

/** Return the union of the inputs' parameters in ascending order of names. Raises BaseMismatchError. */
export function combineLayouts(inputs: readonly Delta[]): Layout[] {
  if (!inputs.every((input) => input instanceof Delta))
    throw new InputError("inputs: give deltas, as `read` returns them", "inputs");
  const names = [...new Set(inputs.flatMap(({ parameters }) => [...parameters.keys()]))].sort();
  return names.map((name) => {
    const own = inputs.map(({ parameters }) => parameters.get(name)).filter((item) => item !== undefined);
    const [first] = own as [Parameter, ...Parameter[]];
    const differs = own.find((other) => !isSame(other, first));
    if (differs) {
      throw new BaseMismatchError(
        `${name}: the inputs were made for different bases (fingerprints ${first.fingerprint} and ${differs.fingerprint}, shapes ${first.shape.join("x")} and ${differs.shape.join("x")}); carry one over with \`svdiff rebase\``,
        name,
      );
    }
    return { ...layoutOf(first), ...combineRuns(lengthOf(first), own) };
  });
}

function isSame(a: Layout, b: Layout): boolean {
  const { fingerprint, kind, axis, shape } = a;
  return (
    fingerprint === b.fingerprint &&
    kind === b.kind &&
    axis === b.axis &&
    shape.length === b.shape.length &&
    shape.every((side, i) => side === b.shape[i])
  );
}

/** Return a parameter without its values. */
export function layoutOf({ name, shape, kind, axis, basisDtype, fingerprint, tied, null: nulls }: Layout): Layout {
  return { name, shape, kind, axis, basisDtype, fingerprint, tied, null: nulls };
}

/** Arguments that any operation takes. */
export interface Common {
  /** The title of the result. */
  title?: string | undefined;
}

/** Return the result of an operation. Arguments that are undefined are left out of its lineage. */
export function result(
  inputs: readonly Delta[],
  layouts: readonly Layout[],
  stored: (layout: Layout) => Stored,
  operation: string,
  args: Record<string, unknown>,
  { title }: Common,
): Delta {
  const parameters = layouts.map((layout) => [layout.name, parameter(layout, stored(layout))] as const);
  return new Delta({ parameters: new Map(parameters), ...metadata(inputs, operation, json(args), title) });
}

function json(args: Record<string, unknown>): JsonObject {
  try {
    return fromPlain(args) as JsonObject;
  } catch (error) {
    if (error instanceof JsonError) throw new InputError(`an argument is wrong: ${error.message}`);
    throw error;
  }
}

function metadata(inputs: readonly Delta[], operation: string, args: JsonObject, title: string | undefined) {
  const sources = inputs.map((delta) => delta.source);
  const single = new Set(sources.map(({ sha256 }) => sha256)).size === 1;
  const strings = combineStrings(inputs, single);
  if (title !== undefined) strings.set("modelspec.title", title);
  return {
    base: combineBase(inputs.map(({ base }) => base)),
    lineage: lineageOf(sources, operation, args),
    training: single ? (inputs[0] as Delta).training : null,
    unknown: firstWins(inputs.map(({ unknown }) => unknown)),
    strings,
  };
}

/** Return the union of objects; where they differ, the first one's value. */
function firstWins<T>(objects: readonly ReadonlyMap<string, T>[]): Map<string, T> {
  const all = new Map<string, T>();
  for (const object of objects) for (const [key, value] of object) if (!all.has(key)) all.set(key, value);
  return all;
}

function combineBase(bases: readonly JsonObject[]): JsonObject {
  const base: JsonObject = firstWins(bases);
  base.set("components", firstWins(bases.map((own) => own.get("components") as JsonObject)));
  const named = bases.find((own) => own.has("repository")) ?? (bases[0] as JsonObject);
  for (const key of ["repository", "revision"]) {
    base.delete(key);
    if (named.has(key)) base.set(key, named.get(key) as Json);
  }
  return base;
}

function combineStrings(inputs: readonly Delta[], single: boolean): Map<string, string> {
  const all = inputs.map(({ strings }) => strings);
  const result = new Map([...firstWins(all)].filter(([key]) => !key.startsWith("modelspec.")));
  const own = ["modelspec.title", "modelspec.merged_from"];
  for (const [key, value] of all[0] as ReadonlyMap<string, string>) {
    const shared = key.startsWith("modelspec.") && all.every((strings) => equal(strings.get(key), value));
    if (shared && (single || !own.includes(key))) result.set(key, value);
  }
  const titles = new Set(inputs.map(({ title }) => title).filter((title) => title !== undefined && title !== ""));
  if (titles.size && !single) result.set("modelspec.merged_from", [...titles].join(", "));
  if (all.some((strings) => strings.has("modelspec.hash_sha256"))) result.set("modelspec.hash_sha256", ""); // until it is written
  return result;
}
