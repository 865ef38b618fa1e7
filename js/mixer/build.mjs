// Builds the page as one HTML file: the worker's text is a string in the page's script.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

async function bundled(entry, define = {}) {
  const { outputFiles } = await build({
    entryPoints: [here(entry)],
    bundle: true,
    minify: true,
    write: false,
    format: "iife",
    target: "es2022",
    charset: "utf8",
    define,
  });
  return outputFiles[0].text;
}

const worker = await bundled("worker.ts");
const script = await bundled("page.ts", { WORKER: JSON.stringify(worker) });
const page = readFileSync(here("page.html"), "utf8")
  .replace("/*STYLE*/", () => readFileSync(here("style.css"), "utf8"))
  .replace("/*SCRIPT*/", () => script.replaceAll("</script", "<\\/script"));
mkdirSync(here("../dist"), { recursive: true });
writeFileSync(here("../dist/mixer.html"), page);
console.log(`dist/mixer.html: ${Buffer.byteLength(page)} bytes`);
