// Weighted sums (section 7.3).
import type { Delta } from "../delta.js";
import { InputError, TensorError } from "../errors.js";
import { DTYPES, type Dtype } from "../numbers.js";
import { lengthOf, project, store, type Layout, type Stored } from "../parameter.js";
import type { SelectOptions } from "../selectors.js";
import { combineLayouts, result, type Common } from "./combine.js";
import { checkWeights, factors, finite, type Weight } from "./weights.js";

export interface SumOptions extends Common, SelectOptions {
  /** The number format of the result, F32 if not given. */
  dtype?: Dtype | undefined;
}

/** Add deltas, each times its weight, 1 if not given. */
export function add(
  inputs: readonly Delta[],
  options: SumOptions & { weights?: readonly Weight[] | undefined } = {},
): Delta {
  if (!inputs.length) throw new InputError("there is nothing to add: give one delta or more", "inputs");
  const weights = checkWeights(options.weights, inputs.length);
  return total(inputs, weights, "add", { weights }, options);
}

/** Return α times the first delta plus 1 − α times the second. */
export function interpolate(first: Delta, second: Delta, alpha: number, options: SumOptions = {}): Delta {
  finite("alpha", alpha);
  if (alpha < 0 || alpha > 1) throw new InputError(`alpha: ${alpha} is not in [0, 1]`, "alpha");
  return total([first, second], [alpha, 1 - alpha], "interpolate", { alpha }, options);
}

/** Multiply a delta by a factor. */
export function scale(delta: Delta, factor: number, options: SumOptions = {}): Delta {
  finite("factor", factor);
  return total([delta], [factor], "scale", { factor }, options);
}

/** Check a number format. Raises InputError. */
export function checkDtype(dtype: Dtype | undefined): Dtype {
  if (dtype !== undefined && !DTYPES.includes(dtype))
    throw new InputError(`dtype: ${String(dtype)} is not F32, F16, BF16 or I8`, "dtype");
  return dtype ?? "F32";
}

/** Return values projected and rounded once: steps 2 to 4 of section 7.3. Raises TensorError. */
export function finish({ name, tied, null: nulls }: Layout, values: Float64Array, dtype: Dtype): Stored {
  if (!values.every(Number.isFinite)) {
    throw new TensorError(`${name}: a value is beyond binary64: use smaller weights`, name);
  }
  return store(name, project(values, tied, nulls), dtype);
}

/** Return what the lineage says beside an operation's own arguments. */
export function recorded(dtype: Dtype, sampleSize: number | undefined): Record<string, unknown> {
  return { dtype: dtype === "F32" ? undefined : dtype, sample_size: sampleSize };
}

function total(
  inputs: readonly Delta[],
  weights: readonly Weight[],
  operation: string,
  args: Record<string, unknown>,
  options: SumOptions,
): Delta {
  const dtype = checkDtype(options.dtype);
  const layouts = combineLayouts(inputs);
  const weightOf = inputs.map((delta, k) => factors(delta, weights[k] as Weight, options));
  const stored = (layout: Layout): Stored => {
    const sum = new Float64Array(lengthOf(layout));
    inputs.forEach(({ parameters }, k) => {
      const own = parameters.get(layout.name);
      if (own) accumulate(sum, own.values, weightOf[k]!(layout.name));
    });
    return finish(layout, sum, dtype);
  };
  return result(inputs, layouts, stored, operation, { ...args, ...recorded(dtype, options.sampleSize) }, options);
}

/** Add values times a weight to a sum: one rounding for the product, one for the sum. */
export function accumulate(sum: Float64Array, values: ArrayLike<number>, weight: number): void {
  for (let i = 0; i < sum.length; i++) sum[i] = sum[i]! + weight * values[i]!;
}
