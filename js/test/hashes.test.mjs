// SHA-256 and SHAKE-256 are those of Node's own library, at all lengths around a block.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { open, read, scale, sha256, shake256 } from "../dist/index.js";

const text = Uint8Array.from({ length: 300 }, (_, i) => (i * 37 + 11) % 256);

test("SHA-256 is Node's", () => {
  for (let length = 0; length <= text.length; length++) {
    const data = text.subarray(0, length);
    assert.equal(Buffer.from(sha256(data)).toString("hex"), createHash("sha256").update(data).digest("hex"));
  }
});

test("SHAKE-256 is Node's", () => {
  for (let length = 0; length <= text.length; length++) {
    const data = text.subarray(0, length);
    const expected = createHash("shake256", { outputLength: length + 1 })
      .update(data)
      .digest("hex");
    assert.equal(Buffer.from(shake256(data, length + 1)).toString("hex"), expected);
  }
});

test("a file is the same input whichever code hashes it", async () => {
  const file = new Uint8Array(readFileSync(new URL("../../spec/v1/vectors/operations/dog.safetensors", import.meta.url)));
  const expected = scale(read(file), 0.5).bytes();
  assert.deepEqual(scale(await open(file), 0.5).bytes(), expected);
  const own = Object.getOwnPropertyDescriptor(globalThis, "crypto");
  Object.defineProperty(globalThis, "crypto", { value: undefined, configurable: true }); // as where there is none
  try {
    assert.deepEqual(scale(await open(file), 0.5).bytes(), expected);
  } finally {
    Object.defineProperty(globalThis, "crypto", own);
  }
});
