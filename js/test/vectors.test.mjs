// All conformance vectors of spec/v1/vectors, counted against the files.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import {
  canonical,
  chooseDtype,
  DeltaError,
  findRuns,
  fingerprint,
  fromPlain,
  plain,
  read,
  roundWeight,
} from "../dist/index.js";
import { operate } from "./operate.mjs";

const folder = fileURLToPath(new URL("../../spec/v1/vectors/", import.meta.url));
const bytes = (file) => new Uint8Array(readFileSync(folder + file));
const json = (file) => JSON.parse(readFileSync(folder + file, "utf8"));
const hex = (data) => Buffer.from(data).toString("hex");
const sha = (data) => createHash("sha256").update(data).digest("hex");
const same = (ours, theirs) => assert.equal(canonical(ours), canonical(fromPlain(theirs)));

/** Return the value of a C99 hexadecimal float, exact in F64. */
function hexFloat(text) {
  const [, sign, whole, fraction = "", exponent] = /^(-?)0x([01])(?:\.([0-9a-f]+))?p([+-]\d+)$/.exec(text);
  const size = Number(BigInt(`0x${whole}${fraction}`)) * 2 ** (-4 * fraction.length);
  const e = Number(exponent);
  const low = Math.max(e, -1022); // 2^-1074 in two steps, each exact
  return (sign ? -1 : 1) * size * 2 ** low * 2 ** (e - low);
}

let passed = 0;
const valid = readdirSync(folder + "valid").filter((file) => file.endsWith(".safetensors"));
const broken = json("invalid.json").files;
const { inputs, operations } = json("operations.json");
const { cases } = json("basis.json");

for (const file of valid) {
  test(`valid/${file}`, () => {
    const expected = json(`valid/${file.replace(".safetensors", ".json")}`);
    const raw = bytes(`valid/${file}`);
    const delta = read(raw);
    same(delta.base, expected.base);
    same(delta.lineage, expected.lineage);
    same(delta.training, expected.training);
    same(delta.unknown, expected.unknown);
    assert.deepEqual(Object.fromEntries(delta.strings), expected.strings);
    assert.deepEqual([...delta.parameters.keys()], Object.keys(expected.parameters).sort());
    for (const [name, own] of delta.parameters) {
      const { values, tied, basis_dtype: basisDtype, dtype, ...rest } = expected.parameters[name];
      const { shape, kind, axis, fingerprint: mark, null: nulls } = own;
      assert.deepEqual({ shape, kind, axis, fingerprint: mark, null: nulls }, rest);
      assert.equal(own.basisDtype, basisDtype);
      assert.equal(own.stored.dtype, dtype);
      assert.deepEqual(own.tied, tied);
      assert.deepEqual(
        [...own.values],
        values.map((value) => hexFloat(value) + 0),
      );
    }
    if (expected.rewritten) assert.equal(sha(delta.bytes()), expected.rewritten);
    if (expected.canonical) assert.equal(expected.rewritten, sha(raw));
    passed++;
  });
}

for (const { file, error, names, about } of broken) {
  test(`${file}: ${about}`, () => {
    assert.throws(
      () => read(bytes(file)),
      (refusal) => {
        assert.ok(refusal instanceof DeltaError, refusal.stack);
        assert.equal(refusal.name, error, refusal.message);
        const said = `${refusal.message}\n${refusal.field}`;
        assert.ok(!names.length || names.some((name) => said.includes(name)), `${said} names none of ${names}`);
        return true;
      },
    );
    passed++;
  });
}

const files = Object.fromEntries(Object.entries(inputs).map(([name, file]) => [name, bytes(file)]));

operations.forEach(({ about, operation, inputs: own, arguments: args, error, names, ...expected }, i) => {
  test(`operation ${i}: ${operation}, ${about}`, () => {
    const deltas = own.map((name) => read(files[name]));
    if (error) {
      assert.throws(
        () => operate(operation, deltas, args),
        (refusal) => {
          assert.equal(refusal.name, error, refusal.stack);
          const said = `${refusal.message}\n${refusal.field}`;
          assert.ok(!names.length || names.some((name) => said.includes(name)), `${said} names none of ${names}`);
          return true;
        },
      );
    } else {
      const result = operate(operation, deltas, args);
      assert.deepEqual([...result.parameters.keys()], Object.keys(expected.tensors).sort());
      for (const [name, { stored }] of result.parameters) {
        const { dtype, data, scales } = expected.tensors[name];
        assert.deepEqual([stored.dtype, hex(stored.data), hex(stored.scales)], [dtype, data, scales ?? ""], name);
      }
      const written = read(result.bytes());
      if (expected.document) same(written.lineage, expected.document.lineage);
      if (expected.strings) assert.deepEqual(plainStrings(written), expected.strings);
      assert.equal(sha(result.bytes()), expected.sha256);
    }
    passed++;
  });
});

const plainStrings = (delta) => plain(new Map(delta.strings));

cases.forEach(
  (
    {
      about,
      shape,
      axis,
      kind,
      stored,
      weight,
      basis_dtype: basisDtype,
      rounded,
      chosen,
      fingerprint: mark,
      sigma,
      tied,
      null: nulls,
    },
    i,
  ) => {
    // Of a weight's basis the rounding, the choice, the fingerprint and the runs of given singular values.
    test(`basis ${i}: ${about ?? `${shape.join("x")} in ${stored}`}`, () => {
      const values = weight.map(hexFloat);
      const own = roundWeight(values, basisDtype);
      assert.deepEqual(
        [...own],
        rounded.map((value) => hexFloat(value) + 0),
      );
      assert.equal(chooseDtype(values), chosen);
      assert.equal(fingerprint(shape, axis, own), mark);
      if (kind === "spectral") assert.deepEqual(findRuns(sigma.map(hexFloat)), { tied, null: nulls });
      passed++;
    });
  },
);

after(() => {
  assert.equal(broken.length, readdirSync(folder + "invalid").length);
  assert.equal(Object.keys(inputs).length, readdirSync(folder + "operations").length);
  assert.equal(valid.length * 2, readdirSync(folder + "valid").length);
  assert.equal(passed, valid.length + broken.length + operations.length + cases.length);
  console.log(
    `${valid.length} valid, ${broken.length} invalid, ${operations.length} operations, ${cases.length} weights: ${passed} vectors, 0 skipped`,
  );
});
