// SHA-256 (FIPS 180-4), at once, and by the platform's own code, which only answers later and is missing in some contexts.

const K = constants(64, 1 / 3);
const START = constants(8, 1 / 2);

/** Return the first 32 bits of the fractional parts of roots of the first primes. */
function constants(count: number, root: number): Int32Array {
  const result = new Int32Array(count);
  let found = 0;
  for (let n = 2; found < count; n++) {
    let prime = true;
    for (let d = 2; d * d <= n; d++) prime &&= n % d !== 0;
    if (prime) result[found++] = (n ** root % 1) * 2 ** 32;
  }
  return result;
}

/** Take blocks of 64 bytes into a state, from `begin` up to `end`. */
function blocks(state: Int32Array, data: Uint8Array, begin: number, end: number): void {
  const w = new Int32Array(64);
  const k = K;
  for (let at = begin; at < end; at += 64) {
    for (let i = 0, j = at; i < 16; i++, j += 4)
      w[i] = (data[j]! << 24) | (data[j + 1]! << 16) | (data[j + 2]! << 8) | data[j + 3]!;
    for (let i = 16; i < 64; i++) {
      const x = w[i - 15]!;
      const y = w[i - 2]!;
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = (w[i - 16]! + s0 + w[i - 7]! + s1) | 0;
    }
    let a = state[0]!,
      b = state[1]!,
      c = state[2]!,
      d = state[3]!;
    let e = state[4]!,
      f = state[5]!,
      g = state[6]!,
      h = state[7]!;
    for (let i = 0; i < 64; i++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + s1 + (g ^ (e & (f ^ g))) + k[i]! + w[i]!) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) | (c & (a | b)))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    state[0] = state[0]! + a;
    state[1] = state[1]! + b;
    state[2] = state[2]! + c;
    state[3] = state[3]! + d;
    state[4] = state[4]! + e;
    state[5] = state[5]! + f;
    state[6] = state[6]! + g;
    state[7] = state[7]! + h;
  }
}

/** Return the 32 bytes of the digest. */
export function sha256(data: Uint8Array): Uint8Array {
  const state = START.slice();
  const whole = data.byteLength - (data.byteLength % 64);
  blocks(state, data, 0, whole);
  const rest = data.byteLength - whole;
  const tail = new Uint8Array(rest < 56 ? 64 : 128);
  tail.set(data.subarray(whole));
  tail[rest] = 0x80;
  new DataView(tail.buffer).setBigUint64(tail.length - 8, BigInt(data.byteLength) * 8n);
  blocks(state, tail, 0, tail.length);
  const result = new Uint8Array(32);
  const out = new DataView(result.buffer);
  state.forEach((word, i) => out.setInt32(4 * i, word));
  return result;
}

/** Return the digest as 64 lower-case hexadecimal digits. */
export function hexDigest(data: Uint8Array): string {
  return hex(sha256(data));
}

/** Return the digest in hexadecimal, by the platform's own code where that is there, which is several times as fast. */
export async function hexDigestLater(data: Uint8Array): Promise<string> {
  const subtle = globalThis.crypto?.subtle as SubtleCrypto | undefined;
  return subtle
    ? hex(new Uint8Array(await subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>)))
    : hexDigest(data);
}

function hex(digest: Uint8Array): string {
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
