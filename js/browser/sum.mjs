// `node sum.mjs RUNS OUT FILE…`: the sum of files in headless Chromium, in milliseconds for each run, and its bytes in OUT.
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const [runs, out, ...files] = process.argv.slice(2);
const { outputFiles } = await build({
  entryPoints: [fileURLToPath(new URL("../src/index.ts", import.meta.url))],
  bundle: true,
  minify: true,
  write: false,
  format: "iife",
  globalName: "svdiff",
});
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const page = await browser.newPage();
await page.goto("file:///dev/null"); // a secure context, as the mixer's
await page.addScriptTag({ content: outputFiles[0].text });
for (const file of files) {
  await page.evaluate((text) => {
    (globalThis.files ??= []).push(Uint8Array.from(atob(text), (char) => char.charCodeAt(0)));
  }, readFileSync(file).toString("base64"));
}
const { times, text } = await page.evaluate(async (count) => {
  const times = [];
  let made;
  for (let run = 0; run < count; run++) {
    const start = performance.now();
    made = svdiff.add(await Promise.all(globalThis.files.map((file) => svdiff.open(file)))).bytes();
    times.push(performance.now() - start);
  }
  let text = "";
  for (let i = 0; i < made.length; i += 8192) text += String.fromCharCode(...made.subarray(i, i + 8192));
  return { times, text: btoa(text) };
}, Number(runs));
await browser.close();
writeFileSync(out, Buffer.from(text, "base64"));
console.log(JSON.stringify(times));
