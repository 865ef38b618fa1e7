// The patterns by which layers are told are those of the specification.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { COMPONENTS, PATTERNS } from "../dist/modules.js";

const table = JSON.parse(readFileSync(new URL("../../spec/v1/modules.json", import.meta.url), "utf8"));

test("the patterns and components are those of modules.json", () => {
  const expected = Object.entries(table.patterns).map(([name, { pattern, matches, ignore_case: anyCase }]) => [
    name,
    String(new RegExp(matches === "module" ? `^(?:${pattern})$` : pattern, anyCase ? "i" : "")),
  ]);
  assert.deepEqual(
    Object.entries(PATTERNS).map(([name, pattern]) => [name, String(pattern)]),
    expected,
  );
  assert.deepEqual(
    Object.entries(COMPONENTS).map(([word, pattern]) => [word, String(pattern)]),
    Object.entries(table.components).map(([word, pattern]) => [word, String(new RegExp(`^(?:${pattern})\\.`))]),
  );
});
