// Weights of inputs: one number, or others for what selectors name (sections 7.3 and 8).
import type { Delta } from "../delta.js";
import { InputError } from "../errors.js";
import { names, type SelectOptions } from "../selectors.js";

/** A weight: a number, or one that differs by selector, of which the last one that names a parameter counts. */
export type Weight = number | { default: number; where: readonly (readonly [string, number])[] };

/** Check weights, 1 for each input if none are given. Raises InputError. */
export function checkWeights(weights: readonly Weight[] | undefined, count: number): Weight[] {
  const all = weights ?? Array.from({ length: count }, () => 1);
  if (all.length !== count)
    throw new InputError(`weights: ${all.length} are given for ${count} inputs; give one for each`, "weights");
  return all.map((weight) => {
    if (typeof weight !== "number" && !Array.isArray((weight as Partial<Exclude<Weight, number>> | null)?.where)) {
      throw new InputError(
        `weights: ${String(weight)} is neither a number nor { default, where: [[selector, number]] }`,
        "weights",
      );
    }
    const numbers =
      typeof weight === "number" ? [weight] : [weight.default, ...weight.where.map(([, number]) => number)];
    for (const number of numbers) finite("weights", number);
    return typeof weight !== "number" && weight.where.length === 0 ? weight.default : weight;
  });
}

/** Check that an argument is a finite number. Raises InputError. */
export function finite(name: string, value: unknown): asserts value is number {
  if (typeof value !== "number" || !Number.isFinite(value))
    throw new InputError(`${name}: ${String(value)} is no finite number`, name);
}

/** Return the weight of each parameter of one input. Raises SelectionError. */
export function factors(delta: Delta, weight: Weight, options: SelectOptions): (name: string) => number {
  if (typeof weight === "number") return () => weight;
  const all = new Map<string, number>();
  for (const [selector, number] of weight.where) {
    for (const name of names([...delta.parameters.values()], [selector], delta.base, options)) all.set(name, number);
  }
  return (name) => all.get(name) ?? weight.default;
}
