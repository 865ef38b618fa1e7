// Sums in exact arithmetic, where the specification rounds only once (sections 6.4 and 7.3).

const double = new Float64Array(1);
const bits = new BigUint64Array(double.buffer);
/** Every finite binary64 number is a whole multiple of 2^−1074. */
const LEAST = 1074;

/** Return a finite number as a whole number and the power of two that it is multiplied with, above 2^−1074. */
function parts(value: number): [bigint, number] {
  double[0] = value;
  const raw = bits[0] as bigint;
  const e = Number((raw >> 52n) & 0x7ffn);
  const fraction = raw & 0xfffffffffffffn;
  const size = e === 0 ? fraction : fraction | 0x10000000000000n;
  return [value < 0 ? -size : size, Math.max(e - 1, 0)];
}

/** Return a finite number as a whole multiple of 2^−1074. */
export function exact(value: number): bigint {
  const [size, shift] = parts(value);
  return size << BigInt(shift);
}

/** Return finite numbers times one power of two that makes whole numbers of all. */
export function wholes(values: Float64Array): bigint[] {
  const all = Array.from(values, parts);
  const least = all.reduce((least, [size, shift]) => (size ? Math.min(least, shift) : least), Infinity);
  return all.map(([size, shift]) => (size ? size << BigInt(shift - least) : 0n));
}

/** Return ⌊√n⌋ of a whole number from 0. */
export function isqrt(n: bigint): bigint {
  if (n < 2n) return n;
  let root = 1n << BigInt(2 * n.toString(16).length); // not below √n
  for (;;) {
    const next = (root + n / root) >> 1n;
    if (next >= root) return root;
    root = next;
  }
}

/** Return the quotient of two whole numbers, rounded once to binary64; it is 0, or of at least 2^−900. */
export function quotient(above: bigint, below: bigint): number {
  const scaled = (above < 0n ? -above : above) << BigInt(LEAST);
  const size = scaled / below;
  const near = nearest(size * below === scaled ? size : size | 1n); // whatever is left is not a tie
  return above < 0n ? -near : near;
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
