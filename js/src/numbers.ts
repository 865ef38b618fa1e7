// The number formats of δ, and rounding to them once (sections 1 and 4.4).

export type Float = "F32" | "F16" | "BF16";
export type Dtype = Float | "I8";

export const DTYPES: readonly Dtype[] = ["F32", "F16", "BF16", "I8"];
export const ITEM_SIZE: Record<Dtype, number> = { F32: 4, F16: 2, BF16: 2, I8: 1 };
export const LARGEST: Record<Dtype, number> = {
  F32: 3.4028234663852886e38,
  F16: 65504,
  BF16: 3.3895313892515355e38,
  I8: 8319008,
};
/** How many neighbours share a scale in I8. */
export const BLOCK = 64;

const double = new Float64Array(1);
const words = new Uint32Array(double.buffer);
const HIGH = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1 ? 1 : 0;
const INTEGER = 2 ** 52; // adding it to less than 2^51, and taking it off, rounds to the nearest integer, ties to even

/** Return the exponent e of a finite number with 2^e ≤ |value| < 2^(e + 1); −1023 of all that are below. */
function exponent(value: number): number {
  double[0] = value;
  return (((words[HIGH] as number) >>> 20) & 0x7ff) - 1023;
}

/** Return 2^e exactly, for −1022 ≤ e ≤ 1023. */
function power(e: number): number {
  words[HIGH] = (e + 1023) << 20;
  words[1 - HIGH] = 0;
  return double[0] as number;
}

function roundTo(value: number, bits: number, least: number): number {
  if (!Number.isFinite(value) || value === 0) return value;
  const quantum = Math.max(exponent(value) - bits, least);
  const steps = Math.abs(value) * power(-quantum);
  const rounded = (steps + INTEGER - INTEGER) * power(quantum);
  return value < 0 ? -rounded : rounded;
}

/** Round a binary64 number to a format, ties to even, once. The result may lie beyond the largest number of F16 or BF16. */
export function round(value: number, dtype: Float): number {
  if (dtype === "F32") return Math.fround(value);
  return dtype === "F16" ? roundTo(value, 10, -24) : roundTo(value, 7, -133);
}

/** Round a binary64 number to F16, as it stands in a basis: what is beyond it becomes infinite. */
export function roundOrInfinite(value: number, dtype: Float): number {
  const rounded = round(value, dtype);
  return Math.abs(rounded) > LARGEST[dtype] ? Math.sign(rounded) * Infinity : rounded;
}

let halves: Float32Array | undefined;

function halfTable(): Float32Array {
  if (halves) return halves;
  halves = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const e = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = e === 31 ? (fraction ? NaN : Infinity) : e ? (1024 + fraction) * 2 ** (e - 25) : fraction * 2 ** -24;
    halves[bits] = bits & 0x8000 ? -size : size;
  }
  return halves;
}

/** Return the bits of a number that is exact in F16. */
function halfBits(value: number): number {
  const size = Math.abs(value);
  const sign = value < 0 ? 0x8000 : 0;
  if (size < 2 ** -14) return sign | (size * 2 ** 24);
  const e = exponent(size);
  return sign | (((e + 14) << 10) + size * power(10 - e));
}

/** Return the values of little-endian bytes; those of I8 are the counts. −0 becomes +0. */
export function decode(data: Uint8Array, dtype: Dtype): Float32Array {
  const size = ITEM_SIZE[dtype];
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const result = new Float32Array(data.byteLength / size);
  const table = halfTable();
  if (dtype === "F32") {
    for (let i = 0; i < result.length; i++) result[i] = view.getFloat32(4 * i, true) + 0; // −0 + 0 is +0
    return result;
  }
  const single = new Float32Array(1);
  const bits = new Uint32Array(single.buffer);
  for (let i = 0; i < result.length; i++) {
    let value: number;
    if (dtype === "F16") value = table[view.getUint16(2 * i, true)] as number;
    else if (dtype === "I8") value = view.getInt8(i);
    else {
      bits[0] = view.getUint16(2 * i, true) << 16;
      value = single[0] as number;
    }
    result[i] = value + 0;
  }
  return result;
}

/** Return the little-endian bytes of values, each rounded once; −0 becomes +0. Values must be within the format. */
export function encode(values: ArrayLike<number>, dtype: Float): Uint8Array {
  const data = new Uint8Array(values.length * ITEM_SIZE[dtype]);
  const view = new DataView(data.buffer);
  const single = new Float32Array(1);
  const bits = new Uint32Array(single.buffer);
  for (let i = 0; i < values.length; i++) {
    const value = round(values[i] as number, dtype) + 0;
    if (dtype === "F32") view.setFloat32(4 * i, value, true);
    else if (dtype === "F16") view.setUint16(2 * i, halfBits(value), true);
    else {
      single[0] = value;
      view.setUint16(2 * i, (bits[0] as number) >>> 16, true);
    }
  }
  return data;
}

/** Counts and scales of values in I8 (section 4.4). */
export interface Counts {
  data: Uint8Array;
  scales: Uint8Array;
}

/** Return values as counts of the scales that a writer takes. */
export function encodeCounts(values: ArrayLike<number>): Counts {
  const blocks = Math.ceil(values.length / BLOCK);
  const scales = new Float64Array(blocks);
  const counts = new Int8Array(values.length);
  for (let block = 0; block < blocks; block++) {
    let largest = 0;
    const end = Math.min(values.length, (block + 1) * BLOCK);
    for (let i = block * BLOCK; i < end; i++) largest = Math.max(largest, Math.abs(values[i] as number));
    const scale = leastScale(largest);
    scales[block] = scale;
    if (scale === 0) continue;
    for (let i = block * BLOCK; i < end; i++) counts[i] = nearestCount(values[i] as number, scale);
  }
  return { data: new Uint8Array(counts.buffer), scales: encode(scales, "F16") };
}

/** Return the smallest F16 number that is at least 1/127 of a magnitude: 127 times one is exact in F64. */
function leastScale(largest: number): number {
  let scale = round(largest / 127, "F16");
  const step = (value: number): number => (value < 2 ** -14 ? 2 ** -24 : power(exponent(value) - 10));
  while (scale * 127 < largest) scale += step(scale);
  while (scale > 0) {
    const below = scale - (scale > 2 ** -14 && scale === power(exponent(scale)) ? step(scale) / 2 : step(scale));
    if (below * 127 < largest) break;
    scale = below;
  }
  return scale;
}

/** Return the integer nearest to value / scale, of two the even one; halves of a scale are exact in F64. */
function nearestCount(value: number, scale: number): number {
  const size = Math.abs(value);
  let count = Math.floor(size / scale);
  while (count * scale > size) count--;
  while ((count + 1) * scale <= size) count++;
  const middle = (2 * count + 1) * scale;
  if (2 * size > middle || (2 * size === middle && count % 2 === 1)) count++;
  return value < 0 ? -count : count;
}

/** Return the values of counts and scales: products of 8 and 11 bits, which F32 holds exactly. */
export function decodeCounts({ data, scales }: Counts): Float32Array {
  const result = decode(data, "I8");
  const factors = decode(scales, "F16");
  for (let i = 0; i < result.length; i++) {
    result[i] = (result[i] as number) * (factors[Math.floor(i / BLOCK)] as number) + 0;
  }
  return result;
}
