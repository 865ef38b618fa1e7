// Spherical interpolation (section 7.6): its two coefficients in whole numbers, which are the same on every machine.
import { exact, isqrt, quotient, wholes } from "../exact.js";

const PLACES = 256n;
const SHARE_PLACES = 128n;
const ONE = 1n << PLACES;

/** Return (sin(αφ) a + sin((1 − α)φ) b) / sin φ, φ the angle between a and b. */
export function slerp(a: Float64Array, b: Float64Array, alpha: number): Float64Array {
  const [first, second] = coefficients(wholes(a), wholes(b), alpha);
  return a.map((value, i) => first * value + second * b[i]!);
}

function coefficients(a: readonly bigint[], b: readonly bigint[], alpha: number): [number, number] {
  const dot = product(a, b);
  const squares = product(a, a) * product(b, b);
  const rest = squares - dot * dot;
  if (rest * 10n ** 12n <= squares) return [alpha, 1 - alpha];
  const size = isqrt(((dot * dot) << (2n * PLACES)) / squares);
  const cosine = dot < 0n ? -size : size;
  const sine = isqrt((rest << (2n * PLACES)) / squares);
  let share = exact(alpha) >> (1074n - SHARE_PLACES);
  // x + iy is the product of those of e^(iφ), e^(iφ/2), e^(iφ/4), … whose bit α has.
  let [x, y, c, s] = [ONE, 0n, cosine, sine];
  for (let place = SHARE_PLACES; share; place--) {
    const bit = 1n << place;
    if (share >= bit) {
      share -= bit;
      [x, y] = [(x * c - y * s) >> PLACES, (x * s + y * c) >> PLACES];
    }
    c = isqrt((ONE + c) << (PLACES - 1n));
    s = (s << (PLACES - 1n)) / c;
  }
  return [quotient(y, sine), quotient((sine * x - cosine * y) >> PLACES, sine)];
}

function product(a: readonly bigint[], b: readonly bigint[]): bigint {
  return a.reduce((sum, value, i) => sum + value * b[i]!, 0n);
}
