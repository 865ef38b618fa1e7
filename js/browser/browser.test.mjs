// The package and the mixer page in headless Chromium, from file:// and without the network.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { add, read } from "../dist/index.js";

const vectors = fileURLToPath(new URL("../../spec/v1/vectors/", import.meta.url));
const mixer = fileURLToPath(new URL("../dist/mixer.html", import.meta.url));
const input = (name) => join(vectors, "operations", `${name}.safetensors`);
const folder = mkdtempSync(join(tmpdir(), "mixer-"));
const sha = (data) => createHash("sha256").update(data).digest("hex");

let browser;
let page;
const requests = [];

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: ["--no-sandbox"],
  });
});
after(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true });
});

async function opened() {
  await page?.close();
  page = await browser.newPage();
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => assert.fail(error));
  await page.goto(pathToFileURL(mixer).href);
}

async function drop(...files) {
  await page.setInputFiles("#files", files);
  await page.waitForFunction(() => !document.querySelector("#state").textContent.startsWith("Reading"));
}

async function saved() {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
  return new Uint8Array(readFileSync(await download.path()));
}

async function problem(file) {
  await page.evaluate(() => document.querySelector("#problems").replaceChildren());
  await page.setInputFiles("#files", file);
  await page.waitForSelector("#problems li");
  return page.textContent("#problems li");
}

test("the page is one file of at most 150 kB, whose policy allows no request", () => {
  assert.ok(statSync(mixer).size <= 150_000);
  assert.match(readFileSync(mixer, "utf8"), /Content-Security-Policy" content="default-src 'none'/);
});

test("the package passes the vectors in the browser", async () => {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL("../src/index.ts", import.meta.url))],
    bundle: true,
    minify: true,
    write: false,
    format: "iife",
    globalName: "svdiff",
  });
  const other = await browser.newPage();
  await other.addScriptTag({ content: outputFiles[0].text });
  const made = (bytes) =>
    other.evaluate(async (text) => {
      try {
        const file = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
        return [...svdiff.sha256(svdiff.read(file).bytes())].map((byte) => byte.toString(16).padStart(2, "0")).join("");
      } catch (error) {
        return error.name;
      }
    }, Buffer.from(bytes).toString("base64"));
  const valid = readdirSync(join(vectors, "valid")).filter((file) => file.endsWith(".json"));
  for (const file of valid) {
    const { rewritten } = JSON.parse(readFileSync(join(vectors, "valid", file), "utf8"));
    const own = await made(readFileSync(join(vectors, "valid", file.replace(".json", ".safetensors"))));
    assert.equal(own, rewritten ?? own, file);
    assert.match(own, /^[0-9a-f]{64}$/, file);
  }
  const { files } = JSON.parse(readFileSync(join(vectors, "invalid.json"), "utf8"));
  for (const { file, error } of files) assert.equal(await made(readFileSync(join(vectors, file))), error, file);
  const text = readFileSync(new URL("../test/operate.mjs", import.meta.url), "utf8");
  const names = /import (\{.*?\}) from/s.exec(text)[1];
  const body = text.replace(/^import .*?;$/ms, "").replace("export function", "globalThis.operate = function");
  await other.addScriptTag({ content: `{ const ${names} = svdiff; ${body} }` });
  const { inputs, operations } = JSON.parse(readFileSync(join(vectors, "operations.json"), "utf8"));
  const raws = Object.entries(inputs).map(([name, file]) => [name, readFileSync(join(vectors, file)).toString("base64")]);
  const results = await other.evaluate(
    ([given, cases]) => {
      const files = Object.fromEntries(
        given.map(([name, encoded]) => [name, Uint8Array.from(atob(encoded), (char) => char.charCodeAt(0))]),
      );
      return cases.map((item) => {
        try {
          const inputs = item.inputs.map((name) => svdiff.read(files[name]));
          const made = globalThis.operate(item.operation, inputs, item.arguments).bytes();
          return [...svdiff.sha256(made)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
        } catch (error) {
          return error.name;
        }
      });
    },
    [raws, operations],
  );
  results.forEach((result, i) => assert.equal(result, operations[i].error ?? operations[i].sha256, operations[i].about));
  await other.close();
});

test("two files are mixed with weights, and saved byte for byte", async () => {
  await opened();
  await drop(input("dog"), input("cat"));
  await page.waitForSelector("#pairs td");
  const [dog, cat] = ["dog", "cat"].map((name) => read(new Uint8Array(readFileSync(input(name)))));
  assert.equal(sha(await saved()), sha(add([dog, cat]).bytes()));
  await page.locator('input[aria-label="weight of cat.safetensors"]').fill("-0.5");
  const block = page.locator('input[aria-label="weight of unet.down_blocks.0 in dog.safetensors"]');
  await block.fill("0.25");
  await page.fill("#title", "A mix");
  await page.selectOption("#dtype", "F16");
  const weights = [{ default: 1, where: [["unet.down_blocks.0.*", 0.25]] }, -0.5];
  assert.equal(sha(await saved()), sha(add([dog, cat], { weights, dtype: "F16", title: "A mix" }).bytes()));
});

test("a file of another base is refused with the reason", async () => {
  await opened();
  await drop(input("dog"));
  assert.match(await problem(input("other")), /^other\.safetensors: it was made for another base/);
});

test("every invalid vector is a sentence", async () => {
  await opened();
  const { files } = JSON.parse(readFileSync(join(vectors, "invalid.json"), "utf8"));
  for (const { file } of files) {
    const text = await problem(join(vectors, file));
    assert.match(text, /^[^:]+: .{20,}\.$/s, file);
    assert.doesNotMatch(text, /undefined|\[object|could not be read/);
  }
});

test("what is no delta is told what it is, and what converts it; 2 GB are refused before they are read", async () => {
  await opened();
  const container = (keys, bytes = 4) => {
    const entries = Object.fromEntries(
      keys.map((key, i) => [key, { dtype: "F32", shape: [bytes / 4], data_offsets: [i * bytes, (i + 1) * bytes] }]),
    );
    const header = Buffer.from(JSON.stringify(entries));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    return Buffer.concat([length, header, Buffer.alloc(keys.length * 4)]);
  };
  const write = (name, data) => {
    writeFileSync(join(folder, name), data);
    return join(folder, name);
  };
  assert.match(await problem(write("lora.safetensors", container(["unet.a.lora_A.weight"]))), /LoRA.*svdiff convert/);
  assert.match(await problem(write("model.safetensors", container(["a.weight"]))), /checkpoint.*svdiff convert/);
  const large = write("large.safetensors", readFileSync(input("dog")));
  truncateSync(large, 2 * 2 ** 30);
  assert.match(await problem(large), /2048 MB.*svdiff add/);
});

test("the page asked for nothing but itself", () => {
  assert.ok(requests.length > 0);
  assert.ok(
    requests.every((url) => url.startsWith("file://") || url.startsWith("blob:") || url.startsWith("data:")),
    requests.join("\n"),
  );
});
