// The package and the mixer page in headless Chromium, from file:// and without the network.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { add, read } from "../dist/index.js";
import { LAYOUT, writeFiles } from "./sd15.mjs";

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
  await page.addInitScript(() => {
    globalThis.longest = 0;
    new PerformanceObserver((list) => {
      for (const { duration } of list.getEntries()) globalThis.longest = Math.max(globalThis.longest, duration);
    }).observe({ type: "longtask", buffered: true });
  });
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => assert.fail(error));
  await page.goto(pathToFileURL(mixer).href);
}

async function drop(...files) {
  await page.setInputFiles("#files", files);
  await settled();
}

async function settled() {
  await page.waitForFunction(() => !/^(Reading|Mixing)/.test(document.querySelector("#state").textContent), null, {
    timeout: 150_000, // where other programs take the cores
  });
}

async function saved() {
  const [download] = await Promise.all([page.waitForEvent("download", { timeout: 150_000 }), page.click("#save")]);
  return new Uint8Array(readFileSync(await download.path()));
}

async function problem(file) {
  await page.setInputFiles("#files", file); // which takes away what was said before
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
  await page.waitForSelector("#pairs .pair");
  const [dog, cat] = ["dog", "cat"].map((name) => read(new Uint8Array(readFileSync(input(name)))));
  assert.equal(sha(await saved()), sha(add([dog, cat]).bytes()));
  await page.locator('input[aria-label="weight of cat.safetensors"]').fill("-0.5");
  const block = page.locator('input[aria-label="weight of unet.down_blocks.0 in dog.safetensors"]');
  await block.fill("0.25");
  await page.fill("#title", "A mix");
  await page.selectOption("#dtype", "F16");
  const where = (weight) => [["unet.down_blocks.0.*", weight]];
  const weights = [
    { default: 1, where: where(0.25) },
    { default: -0.5, where: where(-0.5) },
  ];
  assert.equal(
    await page.textContent("#command"),
    "svdiff add dog.safetensors cat.safetensors:-0.5 --where 'unet.down_blocks.0.*=0.25,-0.5' --dtype f16 --title 'A mix' -o mix.safetensors",
  );
  assert.equal(sha(await saved()), sha(add([dog, cat], { weights, dtype: "F16", title: "A mix" }).bytes()));
});

test("a file of another base is refused with the reason", async () => {
  await opened();
  await drop(input("dog"));
  assert.match(await problem(input("other")), /^other\.safetensors: it was made for another base/);
});

test("every invalid vector is a sentence that says what to do", async () => {
  await opened();
  const { files } = JSON.parse(readFileSync(join(vectors, "invalid.json"), "utf8"));
  const all = files.map(({ file }) => join(vectors, file));
  await drop(...all);
  const said = await page.$$eval("#problems li", (items) => items.map((item) => item.textContent));
  assert.equal(said.length, files.length);
  assert.equal(new Set(all.map((path) => basename(path))).size, files.length);
  for (const [i, text] of said.entries()) {
    assert.ok(text.startsWith(`${basename(all[i])}: `), text);
    assert.match(text, /: (it|its numbers|what it says of itself) .*(Fetch it|Ask whoever|Get the page|svdiff convert|choose)/, text);
    assert.match(text, /\.$/, text);
    assert.doesNotMatch(text, /undefined|\[object|could not be read/);
  }
  assert.ok(await page.isHidden("#result"));
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
  const convert = (name, from = "") => new RegExp(`svdiff convert ${name} ${from}--base BASE -o delta.safetensors, .*\\.$`);
  const said = async (name, data) => problem(write(name, data));
  const lora = await said("lora.safetensors", container(["unet.a.lora_A.weight"]));
  assert.match(lora, /: it is a LoRA/);
  assert.match(lora, convert("lora.safetensors"));
  const odd = await said("it's mine.safetensors", container(["lora_unet_a.lora_down.weight"]));
  assert.ok(odd.includes(`svdiff convert 'it'\\''s mine.safetensors' --base`), odd);
  const checkpoint = await said("model.safetensors", container(["a.weight"]));
  assert.match(checkpoint, /: it is a checkpoint/);
  assert.match(checkpoint, convert("model.safetensors", "--from full "));
  assert.match(await said("other.safetensors", container(["a"])), /no delta.*svdiff what other\.safetensors\.$/);
  assert.match(await said("model.ckpt", Buffer.from("PK\x03\x04 and more", "latin1")), /a pickle of PyTorch/);
  assert.match(await said("lfs.safetensors", Buffer.from("version https://git-lfs.github.com/spec/v1\n")), /git lfs pull/);
  assert.match(await said("page.safetensors", Buffer.from("<!doctype html><p>")), /a web page/);
  assert.match(await said("empty.safetensors", Buffer.alloc(0)), /it is empty, or a folder/);
  assert.match(await said("short.safetensors", Buffer.alloc(7)), /fewer than 8 bytes.*Fetch it again/);
  const large = write("large.safetensors", readFileSync(input("dog")));
  truncateSync(large, 2 * 2 ** 30);
  assert.match(await problem(large), /2048 MB.*svdiff add/);
});

test("a slider moves the blocks that have no weight of their own, and a block can be given back", async () => {
  await opened();
  await drop(input("dog"));
  const block = (label) => page.locator(`input[aria-label="weight of ${label} in dog.safetensors"]`);
  await block("unet.down_blocks.0").fill("0.25");
  await page.locator('input[aria-label="weight of dog.safetensors, as a number"]').fill("1.375");
  assert.equal(await block("unet.down_blocks.0").inputValue(), "0.25");
  assert.equal(await block("unet.down_blocks.1").inputValue(), "1.4"); // the nearest step
  await page.click('button[aria-label="Reset unet.down_blocks.0 in dog.safetensors"]');
  const dog = read(new Uint8Array(readFileSync(input("dog"))));
  assert.equal(sha(await saved()), sha(add([dog], { weights: [1.375] }).bytes()));
});

test("what was removed is no part of the mix", async () => {
  await opened();
  await drop(input("dog"), input("cat"), input("dog_again"));
  await page.click('button[aria-label="Remove cat.safetensors"]');
  assert.equal(await page.locator("#pairs .pair").count(), 1);
  const [dog, again] = ["dog", "dog_again"].map((name) => read(new Uint8Array(readFileSync(input(name)))));
  assert.equal(sha(await saved()), sha(add([dog, again]).bytes()));
});

test("50 files of SD 1.5's size are dropped, weighed and saved while the page stays free", async () => {
  assert.equal(LAYOUT.size, 391);
  const paths = writeFiles(folder, 50);
  await opened();
  await page.evaluate(() => {
    setTimeout(() => {
      for (const end = performance.now() + 300; performance.now() < end; );
    });
  });
  await page.waitForFunction(() => globalThis.longest >= 300); // which shows that such tasks are seen
  const given = await page.evaluateHandle(() => Object.assign(document.createElement("input"), { type: "file", multiple: true }));
  await given.setInputFiles(paths);
  await page.evaluate((element) => {
    const data = new DataTransfer();
    for (const file of element.files) data.items.add(file);
    globalThis.longest = 0;
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
  }, given);
  await settled();
  assert.equal(await page.textContent("#state"), "50 files");
  assert.equal(await page.locator("#inputs > div").count(), 50);
  assert.equal(await page.locator("#pairs .pair").count(), 1225);
  const last = page.locator('input[aria-label="weight of subject-49.safetensors"]');
  for (let i = 0; i < 10; i++) await last.press("ArrowLeft"); // as a person does: what a test fills in is no task
  assert.equal(await last.inputValue(), "0.5");
  const made = await saved();
  const deltas = paths.map((path) => read(new Uint8Array(readFileSync(path))));
  const weights = paths.map((_, i) => (i === 49 ? 0.5 : 1));
  assert.equal(sha(made), sha(add(deltas, { weights }).bytes()));
  const longest = await page.evaluate(() => globalThis.longest);
  console.log(`longest task of the page's thread: ${longest} ms`); // 0: none of 50 ms
  assert.ok(longest < 200, `${longest} ms`);
});

test("the page asked for nothing but itself", () => {
  assert.ok(requests.length > 0);
  assert.ok(
    requests.every((url) => url.startsWith("file://") || url.startsWith("blob:") || url.startsWith("data:")),
    requests.join("\n"),
  );
});
