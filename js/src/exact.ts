// Sums in exact arithmetic, where the specification rounds only once (sections 6.4 and 7.3).

const double = new Float64Array(1);
const bits = new BigUint64Array(double.buffer);
/** Every finite binary64 number is a whole multiple of 2^−1074. */
const LEAST = 1074;

/** Return a finite number as a whole multiple of 2^−1074. */
export function exact(value: number): bigint {
  double[0] = value;
  const raw = bits[0] as bigint;
  const e = Number((raw >> 52n) & 0x7ffn);
  const fraction = raw & 0xfffffffffffffn;
  const size = e === 0 ? fraction : (fraction | 0x10000000000000n) << BigInt(e - 1);
  return value < 0 ? -size : size;
}

/** Round a whole multiple of 2^−1074 to binary64, ties to even; infinite where it is beyond. */
function nearest(value: bigint): number {
  const size = value < 0n ? -value : value;
  const length = size.toString(2).length;
  if (length <= 53) return Number(value) * 2 ** -LEAST;
  const drop = BigInt(length - 53);
  let kept = size >> drop;
  const rest = size - (kept << drop);
  const half = 1n << (drop - 1n);
  if (rest > half || (rest === half && kept % 2n === 1n)) kept++;
  const shift = length - 53 - LEAST; // from −1073
  const result =
    shift < -1000 ? Number(kept) * 2 ** -LEAST * 2 ** (shift + LEAST) : Number(kept) * 2 ** Math.min(shift, 971);
  return (shift > 971 ? Infinity : result) * (value < 0n ? -1 : 1);
}

/** Return the exact sum of finite numbers, rounded once. */
export function exactSum(values: Iterable<number>): number {
  let total = 0n;
  for (const value of values) total += exact(value);
  return nearest(total);
}

/** Return the exact sum of squares of finite numbers, as a multiple of 2^−2148. */
export function exactSquares(values: Iterable<number>): bigint {
  let total = 0n;
  for (const value of values) {
    const number = exact(value);
    total += number * number;
  }
  return total;
}
