// `truncate`: the largest shifts of each spectral parameter (section 7.3).
import type { Delta } from "../delta.js";
import { InputError } from "../errors.js";
import { exact, exactSquares } from "../exact.js";
import { store, withoutMinusZero, type Layout, type Parameter, type Run, type Stored } from "../parameter.js";
import { layoutOf, result, type Common } from "./combine.js";
import { finite } from "./weights.js";

/** How much is kept: at most `rank` shifts, or the largest ones until they have the share `energy` of all squares. */
export type Keep = { rank: number } | { energy: number };

/** Set all but the largest shifts of each spectral parameter to 0. Raises InputError. */
export function truncate(delta: Delta, keep: Keep, options: Common = {}): Delta {
  const args = checkKeep(keep);
  const stored = ({ name }: Layout): Stored => {
    const own = delta.parameters.get(name) as Parameter;
    if (own.kind === "elementwise") return withoutMinusZero(own.stored);
    return store(name, kept(own, args), own.stored.dtype === "I8" ? "F32" : own.stored.dtype);
  };
  return result([delta], [...delta.parameters.values()].map(layoutOf), stored, "truncate", args, options);
}

function checkKeep(keep: Keep): Keep & Record<string, unknown> {
  if ("rank" in keep === "energy" in keep) throw new InputError("give either rank or energy", "rank");
  if ("rank" in keep) {
    if (!Number.isSafeInteger(keep.rank) || keep.rank < 1)
      throw new InputError(`rank: ${String(keep.rank)} is no integer from 1`, "rank");
    return { rank: keep.rank };
  }
  finite("energy", keep.energy);
  if (keep.energy <= 0 || keep.energy > 1) throw new InputError(`energy: ${keep.energy} is not in (0, 1]`, "energy");
  return { energy: keep.energy };
}

function kept(own: Parameter, keep: Keep): Float32Array {
  const { values } = own;
  const units = unitsOf(own).sort((a, b) => Math.abs(values[b[0]]!) - Math.abs(values[a[0]]!) || a[0] - b[0]);
  const result = new Float32Array(values.length);
  const take = ([first, last]: Run): void => result.set(values.subarray(first, last + 1), first);
  if ("rank" in keep) {
    let room = keep.rank;
    for (const unit of units) {
      const length = unit[1] - unit[0] + 1;
      if (length > room) continue;
      room -= length;
      take(unit);
    }
    return result;
  }
  const wanted = exactSquares(values) * exact(keep.energy);
  const one = exact(1);
  let sum = 0n;
  for (const unit of units) {
    if (sum * one >= wanted) break;
    sum += exactSquares(values.subarray(unit[0], unit[1] + 1));
    take(unit);
  }
  return result;
}

/** Return the tied runs and the single values of the part that is not null. */
export function unitsOf({ values, tied, null: nulls }: Parameter): Run[] {
  const units: Run[] = [...tied];
  let next = 0;
  for (const [first, last] of [...tied, [values.length - nulls, values.length] as const]) {
    for (; next < first; next++) units.push([next, next]);
    next = last + 1;
  }
  return units;
}
