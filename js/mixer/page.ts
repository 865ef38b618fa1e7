// The page: what is dropped goes to the worker, and what it answers is shown. Texts of files are never markup.
import type { Weight } from "../src/index.js";
import { Card } from "./card.js";
import { at, make } from "./elements.js";
import type { Pair } from "./blocks.js";
import { quoted } from "./quoted.js";
import type { Answer, Request } from "./worker.js";

declare const WORKER: string; // the worker's own text, put here when the page is built

const worker = new Worker(URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" })));
/** By the number that the worker gave each file; in the order in which they are added. */
const cards = new Map<number, Card>();
const rows = new Map<HTMLElement, Pair>();
/** Files in one go whose blocks are shown at once; of more they are shown when they are asked for. */
const OPEN = 4;

function ask(request: Request): void {
  worker.postMessage(request);
}

function open(files: FileList | null | undefined): void {
  if (!files?.length) return;
  at("problems").replaceChildren();
  at("state").textContent = "Reading …";
  ask({ kind: "open", files: [...files] });
}

worker.onmessage = ({ data }: MessageEvent<Answer>) => {
  if (data.kind === "progress") at("state").textContent = `Reading ${data.done + 1} of ${data.of} …`;
  else if (data.kind === "refused") at("problems").append(make("li", data.problem));
  else if (data.kind === "mixed") download(data.bytes);
  else if (data.kind === "ready") showAll();
  else {
    const card = new Card(data.input, data.base, cards.size < OPEN, showCommand, () => remove(data.input.id));
    cards.set(data.input.id, card);
    at("inputs").append(card.element);
    for (const pair of data.pairs) {
      const other = cards.get(pair.first);
      if (!other) continue; // removed meanwhile
      const row = make("div", "", "pair");
      row.setAttribute("role", "row");
      const texts = [other.name, card.name, pair.cosine.toFixed(3), `${(100 * pair.conflicts).toFixed(1)} %`];
      for (const text of texts) {
        const cell = make("span", text);
        cell.setAttribute("role", "cell");
        row.append(cell);
      }
      rows.set(row, pair);
      at("pairs").append(row);
    }
  }
};

worker.onerror = () => {
  at("state").textContent = "";
  at("problems").append(make("li", "This browser stopped the work, maybe for want of memory: reload the page, drop fewer files."));
};

function remove(id: number): void {
  ask({ kind: "remove", id });
  cards.get(id)?.element.remove();
  cards.delete(id);
  for (const [row, { first, second }] of rows) {
    if (first !== id && second !== id) continue;
    row.remove();
    rows.delete(row);
  }
  showAll();
}

function showAll(): void {
  at("state").textContent = cards.size ? `${cards.size} ${cards.size === 1 ? "file" : "files"}` : "";
  const [first] = cards.values();
  at("base").textContent = first ? `Base: ${first.base}` : "";
  at("result").hidden = !cards.size;
  at("between").hidden = !rows.size;
  showCommand();
}

/** Return the globs of blocks for which any file has a weight of its own. */
function selectorsNow(): string[] {
  return [...new Set([...cards.values()].flatMap((card) => [...card.blocks.keys()]))];
}

/** Return weights as `svdiff add --where` has them: each file has one for each of these blocks. */
function weightsNow(): Map<number, Weight> {
  const selectors = selectorsNow();
  return new Map([...cards].map(([id, card]) => [id, card.weight(selectors)]));
}

/** Show the command that writes the same file. */
function showCommand(): void {
  const all = [...cards.values()];
  const selectors = selectorsNow();
  const dtype = at<HTMLSelectElement>("dtype").value;
  const title = at<HTMLInputElement>("title").value;
  at("command").textContent = [
    "svdiff add",
    ...all.map((card) => quoted(card.all === 1 ? card.name : `${card.name}:${card.all}`)),
    ...selectors.map((selector) => `--where ${quoted(`${selector}=${all.map((card) => card.at(selector)).join(",")}`)}`),
    ...(dtype === "F32" ? [] : [`--dtype ${dtype.toLowerCase()}`]),
    ...(title ? [`--title ${quoted(title)}`] : []),
    "-o mix.safetensors",
  ].join(" ");
  const lacking = all.find((card) => selectors.some((selector) => !card.has(selector)));
  at("lacking").textContent = lacking
    ? `(The command takes no weights for blocks that a file lacks, as ${lacking.name} does; this page does.)`
    : "";
}

function download(bytes: Uint8Array<ArrayBuffer>): void {
  const link = make("a") as HTMLAnchorElement;
  link.href = URL.createObjectURL(new Blob([bytes]));
  link.download = "mix.safetensors";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  at("state").textContent = `Saved ${bytes.length} bytes.`;
}

const drop = at("drop");
document.ondragover = (event) => {
  event.preventDefault();
  drop.classList.add("over");
};
document.ondragleave = () => drop.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  open(event.dataTransfer?.files);
};
const files = at<HTMLInputElement>("files");
files.onchange = () => {
  open(files.files);
  files.value = "";
};
at("dtype").onchange = showCommand;
at("title").oninput = showCommand;
at("save").onclick = () => {
  at("problems").replaceChildren();
  at("state").textContent = "Mixing …";
  const dtype = at<HTMLSelectElement>("dtype").value as "F32";
  ask({ kind: "mix", weights: weightsNow(), dtype, title: at<HTMLInputElement>("title").value });
};
