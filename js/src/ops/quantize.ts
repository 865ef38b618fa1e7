// `quantize`: other number formats, each as narrow as an error allows (section 7.3).
import type { Delta } from "../delta.js";
import { InputError } from "../errors.js";
import { exact } from "../exact.js";
import type { Dtype } from "../numbers.js";
import {
  isWithin,
  rawValues,
  store,
  withoutMinusZero,
  type Layout,
  type Parameter,
  type Stored,
} from "../parameter.js";
import { checkDtype } from "./arithmetic.js";
import { layoutOf, result, type Common } from "./combine.js";
import { finite } from "./weights.js";

const WIDER: Partial<Record<Dtype, Dtype>> = { I8: "F16", F16: "F32", BF16: "F32" };

/** Round each parameter to a number format, or to the next wider one where the relative error is above `maxError`. */
export function quantize(delta: Delta, dtype: Dtype, maxError: number, options: Common = {}): Delta {
  checkDtype(dtype);
  finite("max_error", maxError);
  if (maxError < 0) throw new InputError(`max_error: ${maxError} is negative`, "max_error");
  const stored = ({ name }: Layout): Stored => rounded(delta.parameters.get(name) as Parameter, dtype, maxError);
  return result(
    [delta],
    [...delta.parameters.values()].map(layoutOf),
    stored,
    "quantize",
    { dtype, max_error: maxError },
    options,
  );
}

function rounded(own: Parameter, dtype: Dtype, maxError: number): Stored {
  if (own.stored.dtype === dtype) return withoutMinusZero(own.stored);
  const wider = WIDER[dtype];
  if (!wider || isWithin(own.values, dtype)) {
    const stored = store(own.name, own.values, dtype);
    if (!wider || isClose(rawValues(stored), own.values, maxError)) return stored;
  }
  return rounded(own, wider as Dtype, maxError);
}

/** Return whether ‖a − b‖ ≤ error · ‖b‖, in exact arithmetic. */
function isClose(a: Float32Array, b: Float32Array, error: number): boolean {
  let lost = 0n;
  let whole = 0n;
  for (let i = 0; i < a.length; i++) {
    const value = exact(b[i]!);
    const difference = exact(a[i]!) - value;
    lost += difference * difference;
    whole += value * value;
  }
  const [above, one] = [exact(error), exact(1)];
  return lost * one * one <= above * above * whole;
}
