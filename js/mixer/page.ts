// The page: what is dropped goes to the worker, and what it answers is shown. Texts of files are never markup.
import type { Weight } from "../src/index.js";
import type { Answer, Input, Request } from "./worker.js";

declare const WORKER: string; // the worker's own text, put here when the page is built

const worker = new Worker(URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" })));
const weights: { all: number; blocks: Map<string, number> }[] = [];
let shown: Input[] = [];

function at<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

function make(tag: string, text = "", kind = ""): HTMLElement {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = kind;
  return element;
}

function ask(request: Request): void {
  worker.postMessage(request);
}

function open(files: FileList | null | undefined): void {
  if (files?.length) ask({ kind: "open", files: [...files] });
}

worker.onmessage = ({ data }: MessageEvent<Answer>) => {
  if (data.kind === "progress") at("state").textContent = `Reading ${data.done + 1} of ${data.of} …`;
  if (data.kind === "refused") showProblems([data.problem]);
  if (data.kind === "mixed") download(data.bytes);
  if (data.kind !== "inputs") return;
  at("state").textContent = data.inputs.length
    ? `${data.inputs.length} ${data.inputs.length === 1 ? "file" : "files"}`
    : "";
  at("base").textContent = data.base && `Base: ${data.base}`;
  showProblems(data.problems);
  while (weights.length < data.inputs.length) weights.push({ all: 1, blocks: new Map() });
  shown = data.inputs;
  at("inputs").replaceChildren(...shown.map(card));
  at("result").hidden = !shown.length;
  at("between").hidden = !data.pairs.length;
  const head = make("tr");
  head.append(...["", "", "cosine", "signs that differ"].map((text) => make("th", text)));
  const rows = data.pairs.map(({ first, second, cosine, conflicts }) => {
    const row = make("tr");
    const texts = [shown[first]!.name, shown[second]!.name, cosine.toFixed(3), `${(100 * conflicts).toFixed(1)} %`];
    row.append(...texts.map((text) => make("td", text)));
    return row;
  });
  at("pairs").replaceChildren(head, ...rows);
  showCommand();
};

function showProblems(problems: readonly string[]): void {
  at("problems").replaceChildren(...problems.map((problem) => make("li", problem)));
}

function slider(label: string, value: number, change: (value: number) => void): [HTMLElement, HTMLElement] {
  const input = make("input") as HTMLInputElement;
  const number = make("output", value.toFixed(2));
  Object.assign(input, { type: "range", min: "-2", max: "2", step: "0.05" });
  input.value = String(value);
  input.setAttribute("aria-label", label);
  input.oninput = () => {
    number.textContent = Number(input.value).toFixed(2);
    change(Number(input.value));
    showCommand();
  };
  return [input, number];
}

function card(input: Input, index: number): HTMLElement {
  const weight = weights[index]!;
  const box = make("div", "", "input");
  const remove = make("button", "Remove");
  remove.onclick = () => {
    weights.splice(index, 1);
    ask({ kind: "remove", index });
  };
  const whole = make("div", "", "row");
  whole.append(
    make("b", "all of it"),
    make("span"),
    ...slider(`weight of ${input.name}`, weight.all, (value) => {
      weight.all = value;
    }),
  );
  box.append(
    make("h3", input.title ? `${input.name} – ${input.title}` : input.name),
    make("p", `${input.parameters} weights are shifted.`),
    whole,
  );
  const largest = Math.max(...input.blocks.map(({ squares }) => Math.sqrt(squares))) || 1;
  for (const { label, selector, squares } of input.blocks) {
    const row = make("div", "", "row");
    const bar = make("div", "", "bar");
    const fill = make("i");
    fill.style.width = `${(100 * Math.sqrt(squares)) / largest}%`;
    bar.append(fill);
    bar.title = `‖δ‖ = ${Math.sqrt(squares).toPrecision(3)}`;
    const name = make("span", label);
    name.title = label;
    row.append(name, bar);
    if (selector) {
      row.append(
        ...slider(`weight of ${label} in ${input.name}`, weight.blocks.get(selector) ?? weight.all, (value) => {
          weight.blocks.set(selector, value);
        }),
      );
    }
    box.append(row);
  }
  box.append(remove);
  return box;
}

function weightsNow(): Weight[] {
  return weights
    .slice(0, shown.length)
    .map(({ all, blocks }) => (blocks.size ? { default: all, where: [...blocks] } : all));
}

function showCommand(): void {
  const parts = weightsNow().map((weight) =>
    typeof weight === "number" ? weight : { default: weight.default, ...Object.fromEntries(weight.where) },
  );
  at("command").textContent = `these files with the weights ${JSON.stringify(parts)}`;
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
at("save").onclick = () => {
  const dtype = at<HTMLSelectElement>("dtype").value as "F32";
  ask({ kind: "mix", weights: weightsNow(), dtype, title: at<HTMLInputElement>("title").value });
};
