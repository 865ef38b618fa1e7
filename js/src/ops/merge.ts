// Merging (section 7.6), in coordinates: one per tied run and one per other singular value that is not null.
import type { Delta } from "../delta.js";
import { InputError } from "../errors.js";
import { lengthOf, project, type Layout, type Run, type Stored } from "../parameter.js";
import { shake256 } from "../shake256.js";
import { accumulate, checkDtype, finish, recorded, type SumOptions } from "./arithmetic.js";
import { combineLayouts, result } from "./combine.js";
import { slerp } from "./slerp.js";
import { checkWeights, factors, finite, type Weight } from "./weights.js";

const OPTIONS = {
  linear: ["weights"],
  magnitude: ["weights", "density"],
  ties: ["weights", "density"],
  dare_linear: ["weights", "density", "seed"],
  dare_ties: ["weights", "density", "seed"],
  slerp: ["alpha"],
} as const;

export type Method = keyof typeof OPTIONS;

export interface MergeOptions extends SumOptions {
  weights?: readonly Weight[] | undefined;
  density?: number | undefined;
  seed?: number | undefined;
  alpha?: number | undefined;
}

interface Settings {
  method: Method;
  density: number;
  seed: number;
  alpha: number;
}

/** Merge deltas by a method of section 7.6. Raises InputError, BaseMismatchError and TensorError. */
export function merge(inputs: readonly Delta[], method: Method, options: MergeOptions = {}): Delta {
  const { settings, args } = check(inputs, method, options);
  const dtype = checkDtype(options.dtype);
  const weights = checkWeights(options.weights, inputs.length);
  const layouts = combineLayouts(inputs);
  const weightOf = inputs.map((delta, k) => factors(delta, weights[k] as Weight, options));
  const stored = (layout: Layout): Stored => {
    const values = inputs.map(({ parameters }) => {
      const own = parameters.get(layout.name);
      return own
        ? project(Float64Array.from(own.values), layout.tied, layout.null)
        : new Float64Array(lengthOf(layout));
    });
    const own = inputs.map(({ parameters }, k) => (parameters.has(layout.name) ? weightOf[k]!(layout.name) : 0));
    return finish(layout, merged(layout, values, own, settings), dtype);
  };
  const said = { method, ...args, ...recorded(dtype, options.sampleSize) };
  return result(inputs, layouts, stored, "merge", method === "slerp" ? said : { ...said, weights }, options);
}

function check(
  inputs: readonly Delta[],
  method: Method,
  options: MergeOptions,
): { settings: Settings; args: Record<string, number> } {
  if (!Object.hasOwn(OPTIONS, method))
    throw new InputError(`method: ${String(method)} is not one of ${Object.keys(OPTIONS).join(", ")}`, "method");
  if (!inputs.length) throw new InputError("there is nothing to merge: give one delta or more", "inputs");
  const taken: readonly string[] = OPTIONS[method];
  const args: Record<string, number> = {};
  for (const name of ["weights", "density", "seed", "alpha"] as const) {
    const value = name === "seed" && taken.includes(name) ? (options.seed ?? 0) : options[name];
    if (value !== undefined && !taken.includes(name))
      throw new InputError(`${name}: ${method} takes no such option`, name);
    if (name === "weights" || !taken.includes(name)) continue;
    if (value === undefined) throw new InputError(`${name}: ${method} needs it`, name);
    finite(name, value);
    args[name] = value;
  }
  const { density = 1, seed = 0, alpha = 0 } = args;
  if (density <= 0 || density > 1) throw new InputError(`density: ${density} is not in (0, 1]`, "density");
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw new InputError(`seed: ${seed} is no integer from 0, less than 2^53`, "seed");
  if (alpha < 0 || alpha > 1) throw new InputError(`alpha: ${alpha} is not in [0, 1]`, "alpha");
  if (method === "slerp" && inputs.length !== 2)
    throw new InputError(`slerp takes two inputs, not ${inputs.length}`, "inputs");
  return { settings: { method, density, seed, alpha }, args };
}

function merged(
  layout: Layout,
  values: readonly Float64Array[],
  weights: readonly number[],
  settings: Settings,
): Float64Array {
  const { method, density, seed } = settings;
  if (method === "slerp") return slerp(values[0]!, values[1]!, settings.alpha);
  const units = coordinates(layout);
  let points: Float64Array[] = values.map((value) => Float64Array.from(units, ([first]) => value[first]!));
  if (method === "ties" || method === "magnitude") points = points.map((point) => trim(point, density));
  if (method === "dare_linear" || method === "dare_ties")
    points = points.map((point, k) => drop(point, density, `${seed}\n${k}\n${layout.name}`));
  const sum = method === "ties" || method === "dare_ties" ? elect(points, weights) : linear(points, weights);
  const whole = new Float64Array(values[0]!.length);
  units.forEach(([first, last], i) => whole.fill(sum[i]!, first, last + 1));
  return whole;
}

/** Return tied runs and single values that are not null, in ascending order. */
function coordinates(layout: Layout): Run[] {
  const units: Run[] = [];
  let next = 0;
  const end = lengthOf(layout) - layout.null;
  for (const run of [...layout.tied, [end, end] as const]) {
    for (; next < run[0]; next++) units.push([next, next]);
    if (run[0] < end) units.push(run);
    next = run[1] + 1;
  }
  return units;
}

function linear(points: readonly Float64Array[], weights: readonly number[]): Float64Array {
  const sum = new Float64Array(points[0]!.length);
  points.forEach((point, k) => accumulate(sum, point, weights[k]!));
  return sum;
}

function trim(point: Float64Array, density: number): Float64Array {
  const count = Math.floor(density * point.length + 0.5);
  const order = Array.from(point.keys()).sort((a, b) => Math.abs(point[b]!) - Math.abs(point[a]!) || a - b);
  const result = new Float64Array(point.length);
  for (const index of order.slice(0, Math.max(1, count))) result[index] = point[index]!;
  return result;
}

function drop(point: Float64Array, density: number, text: string): Float64Array {
  const stream = shake256(new TextEncoder().encode(`svdiff draw 1\n${text}`), 8 * point.length);
  const view = new DataView(stream.buffer);
  return point.map((value, i) => {
    // The upper 53 of 64 bits: 32 of the higher word, and 21 of the lower one.
    const draw = (view.getUint32(8 * i + 4, true) * 2 ** 21 + (view.getUint32(8 * i, true) >>> 11)) * 2 ** -53;
    return draw < density ? value / density : 0;
  });
}

function elect(points: readonly Float64Array[], weights: readonly number[]): Float64Array {
  return linear(points, weights).map((sum, i) => {
    let above = 0;
    let below = 0;
    points.forEach((point, k) => {
      const product = weights[k]! * point[i]!;
      if (Math.sign(product) !== Math.sign(sum) || product === 0) return;
      above += product;
      below += Math.abs(weights[k]!);
    });
    return below === 0 ? 0 : above / below;
  });
}
