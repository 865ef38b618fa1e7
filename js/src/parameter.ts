// One shifted parameter: what is said of it (section 5.3), and its values (section 4.4).
import { MetadataError, TensorError } from "./errors.js";
import { exactSum } from "./exact.js";
import { isInteger, isObject, type Json, type JsonObject } from "./json.js";
import { componentOf, isIndexed } from "./names.js";
import {
  BLOCK,
  decode,
  decodeCounts,
  encode,
  encodeCounts,
  ITEM_SIZE,
  LARGEST,
  type Dtype,
  type Float,
} from "./numbers.js";

export type Kind = "spectral" | "elementwise";
/** First and last index of singular values that are too close to tell apart. */
export type Run = readonly [number, number];

/** What a file says of a parameter, but for its values. */
export interface Layout {
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: Kind;
  readonly axis: number;
  readonly basisDtype: Float;
  readonly fingerprint: string;
  readonly tied: readonly Run[];
  readonly null: number;
}

/** Values as they lie in a file; `scales` are empty but for I8. */
export interface Stored {
  readonly dtype: Dtype;
  readonly data: Uint8Array;
  readonly scales: Uint8Array;
}

/** A parameter of a delta. */
export interface Parameter extends Layout {
  readonly stored: Stored;
  /** δ as a reader has it: +0 for −0, and I8 projected. */
  readonly values: Float32Array;
}

/** Return the length of δ (section 4.3); beyond 2^53 it is not exact, and no tensor is so long. */
export function lengthOf({ shape, axis, kind }: Pick<Layout, "shape" | "axis" | "kind">): number {
  const count = shape.reduce((product, side) => product * side, 1);
  const rows = shape[axis] as number;
  return kind === "spectral" ? Math.min(rows, count / rows) : count;
}

const FLOATS: readonly string[] = ["F32", "F16", "BF16"];
const SHAPE = /^[1-9][0-9]{0,11}(?:x[1-9][0-9]{0,11}){0,7}$/;
const FINGERPRINT = /^[A-Za-z0-9_-]{21}[AQgw]$/;
const RUN = /^(0|[1-9][0-9]{0,11})-([1-9][0-9]{0,11})$/;
const COLUMNS: readonly string[] = ["dtype", "exceptions", "fingerprints", "null", "shapes", "tied"];

/** Read the columns of section 5.3 for sorted names. Raises MetadataError. */
export function readColumns(columns: JsonObject, names: readonly string[]): Layout[] {
  for (const key of columns.keys())
    if (!COLUMNS.includes(key)) refuse(`parameters.${key}`, "is no column of this version");
  const dtype = columns.get("dtype");
  if (typeof dtype !== "string" || !FLOATS.includes(dtype)) refuse("parameters.dtype", "is not F32, F16 or BF16");
  const shapes = entries(columns, "shapes", SHAPE, names);
  const fingerprints = entries(columns, "fingerprints", FINGERPRINT, names);
  const [exceptions, tied, nulls] = ["exceptions", "tied", "null"].map((key) => byName(columns, key, names));
  return names.map((name, i) => {
    const shape = (shapes[i] as string).split("x").map(Number);
    const own = {
      shape,
      axis: 0,
      basisDtype: dtype as Float,
      kind: (shape.length === 1 ? "elementwise" : "spectral") as Kind,
    };
    if (exceptions?.has(name)) except(own, exceptions.get(name), name);
    if (shape.length === 1 && own.kind === "spectral")
      refuse("parameters.exceptions", `${name}: one dimension is never spectral`);
    const layout = { ...own, name, fingerprint: fingerprints[i] as string };
    const size = lengthOf(layout);
    const nullCount = nulls?.has(name) ? readNull(nulls.get(name), name, own.kind, size) : 0;
    return {
      ...layout,
      null: nullCount,
      tied: tied?.has(name) ? readRuns(tied.get(name), name, own.kind, size - nullCount) : [],
    };
  });
}

function refuse(field: string, why: string): never {
  throw new MetadataError(`${field} ${why}`, field);
}

function entries(columns: JsonObject, key: string, grammar: RegExp, names: readonly string[]): string[] {
  const field = `parameters.${key}`;
  const column = columns.get(key);
  if (typeof column !== "string") refuse(field, column === undefined ? "is missing" : "is not a string");
  const found = column.split(" ");
  if (found.length !== names.length) refuse(field, `has ${found.length} entries for ${names.length} parameters`);
  found.forEach((entry, i) => {
    if (!grammar.test(entry))
      refuse(field, `says ${JSON.stringify(entry.slice(0, 80))} of ${names[i]}, which breaks section 5.3`);
  });
  return found;
}

function byName(columns: JsonObject, key: string, names: readonly string[]): JsonObject | undefined {
  const column = columns.get(key);
  if (column === undefined) return undefined;
  if (!isObject(column)) refuse(`parameters.${key}`, "is not an object");
  const known = new Set(names);
  for (const name of column.keys())
    if (!known.has(name)) refuse(`parameters.${key}`, `names ${JSON.stringify(name)}, which is no tensor`);
  return column;
}

function except(
  own: { shape: number[]; axis: number; basisDtype: Float; kind: Kind },
  exception: Json | undefined,
  name: string,
): void {
  const bad = (why: string): never => refuse("parameters.exceptions", `${name}: ${why}`);
  if (!isObject(exception)) return bad("is not an object");
  for (const [key, value] of exception) {
    if (key === "axis") {
      if (!isInteger(value) || value < 0 || value >= own.shape.length)
        return bad("the axis is no dimension of the weight");
      own.axis = value;
    } else if (key === "dtype") {
      if (typeof value !== "string" || !FLOATS.includes(value)) return bad("the basis dtype is not F32, F16 or BF16");
      own.basisDtype = value as Float;
    } else if (key === "kind") {
      if (value !== "spectral" && value !== "elementwise") return bad("the kind is neither spectral nor elementwise");
      own.kind = value;
    } else return bad(`the member ${JSON.stringify(key)} is not known`);
  }
}

function readNull(value: Json | undefined, name: string, kind: Kind, size: number): number {
  if (kind !== "spectral") refuse("parameters.null", `${name}: it is elementwise, and has no singular values`);
  if (!isInteger(value) || value < 1 || value > size)
    refuse("parameters.null", `${name}: not an integer from 1 to ${size}`);
  return value;
}

function readRuns(value: Json | undefined, name: string, kind: Kind, end: number): Run[] {
  if (kind !== "spectral") refuse("parameters.tied", `${name}: it is elementwise, and has no singular values`);
  if (typeof value !== "string") refuse("parameters.tied", `${name}: not a string`);
  let before = -1;
  return value.split(" ").map((entry) => {
    const run = RUN.exec(entry);
    const [first, last] = [Number(run?.[1]), Number(run?.[2])];
    if (!run || first <= before || last <= first || last >= end) {
      refuse(
        "parameters.tied",
        `${name}: ${JSON.stringify(value.slice(0, 80))} are no runs of its ${end} singular values in front of the null part (parameters.null)`,
      );
    }
    before = last;
    return [first, last] as const;
  });
}

/** Return the canonical columns of sorted layouts. */
export function writeColumns(layouts: readonly Layout[]): JsonObject {
  const count = (dtype: string): number => layouts.filter((layout) => layout.basisDtype === dtype).length;
  const dtype = FLOATS.reduce((best, other) => (count(other) > count(best) ? other : best));
  const exceptions: JsonObject = new Map();
  const tied: JsonObject = new Map();
  const nulls: JsonObject = new Map();
  for (const layout of layouts) {
    const exception: JsonObject = new Map();
    if (layout.axis !== 0) exception.set("axis", layout.axis);
    if (layout.basisDtype !== dtype) exception.set("dtype", layout.basisDtype);
    if (layout.kind !== (layout.shape.length === 1 ? "elementwise" : "spectral")) exception.set("kind", layout.kind);
    if (exception.size) exceptions.set(layout.name, exception);
    if (layout.tied.length) tied.set(layout.name, layout.tied.map(([first, last]) => `${first}-${last}`).join(" "));
    if (layout.null) nulls.set(layout.name, layout.null);
  }
  const columns: JsonObject = new Map<string, Json>([
    ["dtype", dtype],
    ["fingerprints", layouts.map((layout) => layout.fingerprint).join(" ")],
    ["shapes", layouts.map((layout) => layout.shape.join("x")).join(" ")],
  ]);
  for (const [key, column] of [
    ["exceptions", exceptions],
    ["tied", tied],
    ["null", nulls],
  ] as const) {
    if (column.size) columns.set(key, column);
  }
  return columns;
}

/** Check names against the components that a document names, and rules M15 and M16. Raises MetadataError. */
export function checkNames(names: readonly string[], components: JsonObject): void {
  for (const name of names) {
    const component = componentOf(name);
    if (component === undefined)
      throw new MetadataError(`${JSON.stringify(name)} is no name of a parameter (section 4.1)`, name);
    if (!components.has(component))
      throw new MetadataError(`${name}: base.components does not name its component`, name);
  }
}

/** Check what rule M16 asks of a parameter that is a slice of a stack. Raises MetadataError. */
export function checkSlice({ name, kind, shape }: Layout): void {
  if (isIndexed(name) && (kind !== "spectral" || shape.length !== 2)) {
    throw new MetadataError(`${name}: a name with an index is of a spectral weight of two dimensions`, name);
  }
}

/** Return values, given that they are projected on tied runs and the null part (section 6.4). */
export function project(values: Float64Array, tied: readonly Run[], nulls: number): Float64Array {
  for (const [first, last] of tied) {
    const run = values.subarray(first, last + 1);
    if (run.every((value) => value === run[0])) continue;
    run.fill(exactSum(run) / run.length);
  }
  return values.fill(0, values.length - nulls);
}

/** Return a parameter of values as they lie in a file, checked by rules T3, T4, T5 and T7. Raises TensorError. */
export function parameter(layout: Layout, stored: Stored): Parameter {
  const values = stored.dtype === "I8" ? countedValues(layout, stored) : decode(stored.data, stored.dtype);
  if (stored.dtype !== "I8") checkValues(layout, values);
  return { ...layout, stored, values };
}

function checkValues({ name, tied, null: nulls }: Layout, values: Float32Array): void {
  const refuseValues = (why: string): never => {
    throw new TensorError(`${name}: ${why}`, name);
  };
  // A difference is 0 of finite numbers alone; a call for each value would take longer than all else.
  for (let i = 0; i < values.length; i++) if (values[i]! - values[i]! !== 0) refuseValues("a value is NaN or infinite");
  for (const [first, last] of tied) {
    for (let i = first + 1; i <= last; i++) {
      if (values[i] !== values[first]) refuseValues(`values ${first} and ${i} of a tied run differ`);
    }
  }
  for (let i = values.length - nulls; i < values.length; i++) {
    if (values[i] !== 0) refuseValues(`value ${i}, at a null singular value, is not 0`);
  }
}

function countedValues({ name, tied, null: nulls }: Layout, stored: Stored): Float32Array {
  if (stored.data.includes(0x80)) throw new TensorError(`${name}: a count is −128`, name);
  const scales = decode(stored.scales, "F16");
  if (!scales.every((scale) => scale >= 0 && scale < Infinity)) {
    throw new TensorError(`${name}: one of its scales in svdiff.scales is negative, infinite or NaN`, name);
  }
  const values = decodeCounts(stored);
  if (!tied.length && !nulls) return values;
  return Float32Array.from(project(Float64Array.from(values), tied, nulls), (value) => value + 0);
}

/** Return how many bytes of scales a parameter in I8 has. */
export function scalesSize(layout: Layout): number {
  return 2 * Math.ceil(lengthOf(layout) / BLOCK);
}

/** Return whether all values are finite and within a format. */
export function isWithin(values: ArrayLike<number>, dtype: Dtype): boolean {
  for (let i = 0; i < values.length; i++) if (!(Math.abs(values[i] as number) <= LARGEST[dtype])) return false;
  return true;
}

/** Return values rounded once, checked by section 4.4. Raises TensorError. */
export function store(name: string, values: ArrayLike<number>, dtype: Dtype): Stored {
  if (!isWithin(values, dtype)) {
    throw new TensorError(
      `${name}: a value is not finite, or beyond ${LARGEST[dtype]}, the largest of ${dtype}: use a wider format or smaller weights`,
      name,
    );
  }
  if (dtype === "I8") return { dtype, ...encodeCounts(values) };
  return { dtype, data: encode(values, dtype), scales: NONE };
}

const NONE = new Uint8Array(0);

/** Return the values of a stored tensor before they are projected. */
export function rawValues(stored: Stored): Float32Array {
  return stored.dtype === "I8" ? decodeCounts(stored) : decode(stored.data, stored.dtype);
}

/** Return stored values as a writer passes them on: without −0. */
export function withoutMinusZero(stored: Stored): Stored {
  if (stored.dtype === "I8") return stored;
  const size = ITEM_SIZE[stored.dtype];
  for (let i = size - 1; i < stored.data.length; i += size) {
    if (stored.data[i] === 0x80) return { ...stored, data: encode(decode(stored.data, stored.dtype), stored.dtype) };
  }
  return stored;
}
