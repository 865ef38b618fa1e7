// What npm packs: code, types, README and licence, and nothing else.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL("../", import.meta.url));

test("the package has modules with their types, its README and its licence, and no tests", () => {
  const command = ["pack", "--dry-run", "--json", "--ignore-scripts", "--offline"];
  const [packed] = JSON.parse(execFileSync("npm", command, { cwd: folder, encoding: "utf8", stdio: "pipe" }));
  const paths = packed.files.map(({ path }) => path);
  const sources = paths.filter((path) => path.startsWith("src/"));
  assert.ok(sources.length > 20);
  for (const source of sources) {
    const built = source.replace("src/", "dist/").replace(/\.ts$/, "");
    assert.ok(paths.includes(`${built}.js`) && paths.includes(`${built}.d.ts`), source);
  }
  const others = paths.filter((path) => !/^(src|dist)\//.test(path));
  assert.deepEqual(others.sort(), ["LICENSE", "README.md", "package.json"]);
  assert.equal(paths.length, 3 * sources.length + others.length); // nothing that was built of what is gone
});

test("the licence is the project's, and the version too", () => {
  const root = new URL("../../", import.meta.url);
  assert.equal(readFileSync(`${folder}LICENSE`, "utf8"), readFileSync(new URL("LICENSE", root), "utf8"));
  const [, version] = /^__version__ = "(.*)"$/m.exec(readFileSync(new URL("svdiff_delta/__init__.py", root), "utf8"));
  assert.equal(JSON.parse(readFileSync(`${folder}package.json`, "utf8")).version, version);
});
