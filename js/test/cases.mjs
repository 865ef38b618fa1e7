// Does what Python's tests drew: `node cases.mjs FOLDER` writes results beside what the Python library made, and a summary.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DeltaError, read } from "../dist/index.js";
import { operate } from "./operate.mjs";

const folder = process.argv[2];
const bytes = (name) => new Uint8Array(readFileSync(join(folder, name)));
const differing = [];

/** Compare what is made here, or the class of the refusal, with what was made there. */
function compare(name, make, error, anyClass) {
  let made;
  let refusal = "";
  try {
    made = make();
  } catch (caught) {
    if (!(caught instanceof DeltaError)) throw caught;
    refusal = caught.name;
    if (error && (anyClass || caught.name === error)) return;
    differing.push({ name, error, refusal, message: caught.message });
    return;
  }
  writeFileSync(join(folder, `${name}-made`), made);
  if (error || Buffer.compare(bytes(`${name}-result`), made) !== 0) differing.push({ name, error, refusal });
}

let compared = 0;
if (existsSync(join(folder, "cases.json"))) {
  for (const { number, operation, inputs, arguments: args, title, error, any } of JSON.parse(
    readFileSync(join(folder, "cases.json"), "utf8"),
  )) {
    const deltas = () => Array.from({ length: inputs }, (_, place) => read(bytes(`${number}-${place}`)));
    compare(String(number), () => operate(operation, deltas(), args, title ?? undefined).bytes(), error, any);
    compared++;
  }
}
if (existsSync(join(folder, "files.json"))) {
  // A file may break several rules, of which each implementation names one: only whether it is refused must be the same.
  JSON.parse(readFileSync(join(folder, "files.json"), "utf8")).forEach((error, number) => {
    compare(String(number), () => read(bytes(String(number))).bytes(), error, true);
    compared++;
  });
}
console.log(JSON.stringify({ compared, differing }));
