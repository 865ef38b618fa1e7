// What the basis protocol says of a weight without decomposing it (sections 6.1, 6.2 and 6.4).
import { encode, LARGEST, round, roundOrInfinite, type Float } from "./numbers.js";
import type { Run } from "./parameter.js";
import { sha256 } from "./sha256.js";

/** Round a weight to the basis dtype (section 6.1). A weight that is F64 is rounded to F32 first. */
export function roundWeight(weight: ArrayLike<number>, basisDtype: Float): Float64Array {
  return Float64Array.from(weight, (value) => roundOrInfinite(Math.fround(value), basisDtype) + 0);
}

/** Choose the basis dtype of a weight (section 6.1). */
export function chooseDtype(weight: ArrayLike<number>): Float {
  const all = Array.from(weight);
  const isExact = (dtype: Float): boolean =>
    all.every((value) => round(value, dtype) === value && Math.abs(value) <= LARGEST[dtype]);
  if (isExact("F16")) return "F16";
  if (isExact("BF16")) return "BF16";
  const halves = roundWeight(weight, "F16");
  if (!halves.every(Number.isFinite)) return "F32";
  let lost = 0;
  let whole = 0;
  all.forEach((value, i) => {
    lost += (halves[i]! - value) ** 2;
    whole += value ** 2;
  });
  return Math.sqrt(lost) / Math.sqrt(whole) <= 0.01 ? "F16" : "F32";
}

/** Return the 22 characters that identify a rounded weight, given in the order of its own shape (section 6.2). */
export function fingerprint(shape: readonly number[], axis: number, rounded: ArrayLike<number>): string {
  const all = Array.from(rounded);
  const dtype =
    (["F16", "BF16"] as const).find((name) =>
      all.every((value) => Math.abs(value) <= LARGEST[name] && round(value, name) === value),
    ) ?? "F32";
  const head = new TextEncoder().encode(`svdiff 1 ${dtype} ${shape.join("x")} ${axis}\n`);
  const values = encode(all, dtype);
  const preimage = new Uint8Array(head.length + values.length);
  preimage.set(head);
  preimage.set(values, head.length);
  const digest = btoa(String.fromCharCode(...sha256(preimage).subarray(0, 16)));
  return digest.replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
}

/** Return the tied runs and the null count of descending singular values (section 6.4). */
export function findRuns(sigma: ArrayLike<number>, tolerance = 1e-7): { tied: Run[]; null: number } {
  const limit = tolerance * (sigma[0] as number);
  const tied: Run[] = [];
  let nulls = 0;
  let first = 0;
  for (let i = 1; i <= sigma.length; i++) {
    if (i < sigma.length && sigma[i - 1]! - sigma[i]! <= limit) continue;
    if (sigma[i - 1]! <= limit) nulls += i - first;
    else if (i - 1 > first) tied.push([first, i - 1]);
    first = i;
  }
  return { tied, null: nulls };
}
