// What operations refuse beyond what vectors hold, and what the API keeps to itself.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { add, fromPlain, InputError, MetadataError, read, scale, slice, truncate, Delta } from "../dist/index.js";

const dog = read(new Uint8Array(readFileSync(new URL("../../spec/v1/vectors/operations/dog.safetensors", import.meta.url))));

test("a document that would be nested too deep is not written", () => {
  let deep = [];
  for (let i = 0; i < 11; i++) deep = [deep];
  assert.throws(() => new Delta({ ...dog, unknown: fromPlain({ x: deep }) }).bytes(), MetadataError);
});

test("half of a surrogate pair in a title is refused", () => {
  assert.throws(() => scale(dog, 1, { title: "\ud83d" }).bytes(), InputError);
});

test("ranks, sample sizes and weights are checked", () => {
  assert.throws(() => truncate(dog, { rank: 0 }), InputError);
  assert.throws(() => slice(dog, ["unet"], { sampleSize: 0 }), InputError);
  assert.throws(() => add([dog], { weights: [NaN] }), InputError);
  assert.throws(() => add([dog], { dtype: "F64" }), InputError);
});

test("arguments of another type are refused, and named", () => {
  for (const [what, wrong] of [
    ["file", () => read("dog.safetensors")],
    ["inputs", () => add([{}])],
    ["weights", () => add([dog], { weights: ["2"] })],
    ["weights", () => add([dog], { weights: [null] })],
    ["selectors", () => slice(dog, "unet")],
    ["selectors", () => slice(dog, [1])],
  ]) {
    assert.throws(wrong, (error) => error instanceof InputError && error.field === what);
  }
});

test("the bytes of a response are read as well", () => {
  const bytes = dog.bytes();
  assert.deepEqual(read(bytes.buffer).bytes(), bytes);
});

test("inputs are left as they are", () => {
  const before = dog.bytes();
  add([dog, dog], { weights: [2, -1], dtype: "I8" });
  assert.deepEqual(dog.bytes(), before);
});
