// The JavaScript of docs/browser.md and of README.md runs as it stands, in a folder with the files that it names.
import assert from "node:assert/strict";
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

for (const [page, made] of [
  ["docs/browser.md", "small.safetensors"],
  ["js/README.md", "both.safetensors"],
]) {
  test(`the code of ${page} runs`, async () => {
    const folder = mkdtempSync(join(tmpdir(), "page-"));
    const script = join(root, "js", "dist", `page-${made}.mjs`); // within the package, which there goes by its own name
    const before = process.cwd();
    try {
      for (const name of ["dog", "cat"])
        copyFileSync(
          join(root, "spec/v1/vectors/operations", `${name}.safetensors`),
          join(folder, `${name}.safetensors`),
        );
      const fences = [...readFileSync(join(root, page), "utf8").matchAll(/^```js\n(.*?)^```/gms)];
      assert.equal(fences.length, 1);
      writeFileSync(script, fences[0][1].replace(/console\.log/g, "void"));
      process.chdir(folder);
      await import(pathToFileURL(script).href);
      assert.ok(existsSync(made));
    } finally {
      process.chdir(before);
      rmSync(folder, { recursive: true });
      rmSync(script, { force: true });
    }
  });
}
