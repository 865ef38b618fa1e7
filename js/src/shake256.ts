// SHAKE-256 (FIPS 202), for the draws of section 7.6. A lane of 64 bits is two words, the lower one first.

const RATE = 136;
const ROTATIONS: number[] = [];
const TARGETS: number[] = [];
const IOTA: [number, number][] = [];
prepare();

/** Fill the tables of rho, pi and iota by their definitions. */
function prepare(): void {
  let x = 1;
  let y = 0;
  for (let t = 0; t < 24; t++) {
    ROTATIONS[x + 5 * y] = (((t + 1) * (t + 2)) / 2) % 64;
    [x, y] = [y, (2 * x + 3 * y) % 5];
  }
  ROTATIONS[0] = 0;
  for (y = 0; y < 5; y++) for (x = 0; x < 5; x++) TARGETS[x + 5 * y] = y + 5 * ((2 * x + 3 * y) % 5);
  let register = 1;
  for (let round = 0; round < 24; round++) {
    let low = 0;
    let high = 0;
    for (let j = 0; j < 7; j++) {
      const place = 2 ** j - 1;
      if (register & 1) {
        if (place < 32) low |= 1 << place;
        else high |= 1 << (place - 32);
      }
      register = register & 0x80 ? ((register << 1) ^ 0x171) & 0xff : register << 1;
    }
    IOTA.push([low, high]);
  }
}

function permute(state: Int32Array): void {
  const column = new Int32Array(10);
  const moved = new Int32Array(50);
  for (const [low, high] of IOTA) {
    for (let x = 0; x < 10; x++)
      column[x] = state[x]! ^ state[x + 10]! ^ state[x + 20]! ^ state[x + 30]! ^ state[x + 40]!;
    for (let x = 0; x < 5; x++) {
      const before = 2 * ((x + 4) % 5);
      const after = 2 * ((x + 1) % 5);
      const lower = column[before]! ^ ((column[after]! << 1) | (column[after + 1]! >>> 31));
      const upper = column[before + 1]! ^ ((column[after + 1]! << 1) | (column[after]! >>> 31));
      for (let y = 0; y < 50; y += 10) {
        state[2 * x + y] = state[2 * x + y]! ^ lower;
        state[2 * x + y + 1] = state[2 * x + y + 1]! ^ upper;
      }
    }
    for (let i = 0; i < 25; i++) {
      const by = ROTATIONS[i]!;
      const swap = by >= 32 ? 1 : 0;
      const lower = state[2 * i + swap]!;
      const upper = state[2 * i + 1 - swap]!;
      const n = by % 32;
      const target = 2 * TARGETS[i]!;
      moved[target] = n ? (lower << n) | (upper >>> (32 - n)) : lower;
      moved[target + 1] = n ? (upper << n) | (lower >>> (32 - n)) : upper;
    }
    for (let y = 0; y < 50; y += 10) {
      for (let x = 0; x < 10; x++)
        state[y + x] = moved[y + x]! ^ (~moved[y + ((x + 2) % 10)]! & moved[y + ((x + 4) % 10)]!);
    }
    state[0] = state[0]! ^ low;
    state[1] = state[1]! ^ high;
  }
}

/** Return the first `length` bytes of the output for a message. */
export function shake256(message: Uint8Array, length: number): Uint8Array {
  const state = new Int32Array(50);
  const bytes = lanes(state);
  let place = 0;
  for (const byte of message) {
    bytes.mix(place++, byte);
    if (place === RATE) {
      permute(state);
      place = 0;
    }
  }
  bytes.mix(place, 0x1f);
  bytes.mix(RATE - 1, 0x80);
  const result = new Uint8Array(length);
  for (let i = 0; i < length; i++) {
    if (i % RATE === 0) permute(state);
    result[i] = bytes.read(i % RATE);
  }
  return result;
}

/** Return access to the bytes of a state, in the order of the standard on any processor. */
function lanes(state: Int32Array): { mix(at: number, byte: number): void; read(at: number): number } {
  return {
    mix: (at, byte) => {
      state[at >> 2] = state[at >> 2]! ^ (byte << (8 * (at & 3)));
    },
    read: (at) => (state[at >> 2]! >>> (8 * (at & 3))) & 255,
  };
}
