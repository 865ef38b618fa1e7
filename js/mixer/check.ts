// What a dropped file is, said in a sentence a person can act on, before more than its header is read.
import {
  BaseMismatchError,
  DeltaError,
  headerLength,
  LONGEST_HEADER,
  parseHeader,
  open as openBytes,
  type Delta,
} from "../src/index.js";
import { quoted } from "./quoted.js";

/** No delta of the models in use is near it (one of a language model of 405 billion weights has 57 MB). */
export const LARGEST_FILE = 256 * 2 ** 20;

/** How files begin that are dropped for safetensors files. */
const BEGINNINGS: readonly (readonly [RegExp, string])[] = [
  [/^(PK\x03\x04|\x80[\x02-\x05])/, "a pickle of PyTorch, which can run code when it is opened: look for it as safetensors"],
  [/^GGUF/, "a model of quantized weights (GGUF): deltas lie beside such models, not in them"],
  [/^version /, "a pointer of Git LFS, in the place of the file: fetch that with git lfs pull"],
  [/^\s*<[!?a-z]/i, "a web page, in the place of the file: fetch that by its link for downloads"],
  [/^(\x89PNG|\xff\xd8\xff|RIFF|GIF8)/, "a picture: drop delta files"],
];

const ADAPTER = /lora_|\.lora|hada_|lokr_|\.alpha$|dora_scale/;

/** Read a dropped file. Raises DeltaError whose message is a sentence. */
export async function open(file: Blob & { name: string }): Promise<Delta> {
  if (!file.size) throw new DeltaError("it is empty, or a folder: choose delta files.");
  const start = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  const text = String.fromCharCode(...start);
  const known = BEGINNINGS.find(([pattern]) => pattern.test(text));
  if (known) throw new DeltaError(`it is ${known[1]}.`);
  const length = Math.min(headerLength(start, file.size), LONGEST_HEADER);
  const { header, strings } = parseHeader(new Uint8Array(await file.slice(8, 8 + length).arrayBuffer()));
  if (!strings.has("svdiff")) throw new DeltaError(foreign(file.name, [...header.keys()], strings));
  if (file.size > LARGEST_FILE) {
    throw new DeltaError(
      `it has ${megabytes(file.size)} MB, and this page takes files of ${megabytes(LARGEST_FILE)} MB: combine it with svdiff add.`,
    );
  }
  return openBytes(new Uint8Array(await file.arrayBuffer()));
}

function foreign(name: string, keys: readonly string[], strings: ReadonlyMap<string, string>): string {
  const command = (from = ""): string =>
    `svdiff convert ${quoted(name)} ${from}--base BASE -o delta.safetensors, with BASE the model that it was made for`;
  if (strings.has("svdiff.difference"))
    return `it holds the whole change of the weights, and no shifts. A delta is made of it by ${command()}.`;
  if (strings.has("svdiff.adapter") || keys.some((key) => ADAPTER.test(key)))
    return `it is a LoRA or another adapter, and no delta. A delta is made of it by ${command()}.`;
  if (keys.some((key) => /\.weight$/.test(key)))
    return `it is a checkpoint, with the weights themselves, and no delta. If it was tuned, a delta is made of it by ${command("--from full ")}.`;
  return `it is a safetensors file, and no delta. What it is says svdiff what ${quoted(name)}.`;
}

function megabytes(size: number): number {
  return Math.round(size / 2 ** 20);
}

const ADVICE: Record<string, readonly [string, string]> = {
  HeaderError: ["it is damaged, or no safetensors file", "Fetch it again from where it came"],
  MetadataError: ["what it says of itself breaks the format", "Ask whoever made it for another copy"],
  TensorError: ["its numbers break the format", "Ask whoever made it for another copy"],
  VersionError: ["it was written for a newer version", "Get the page as it is now, from where you have this one"],
};

/** Return what is wrong with a file, as a sentence. */
export function sentence(name: string, error: unknown): string {
  if (!(error instanceof DeltaError)) {
    const kind = error instanceof Error ? error.name : "unknown";
    return `${name}: it could not be read (${kind}). It is a folder, or was moved or changed meanwhile: choose it again.`;
  }
  if (error instanceof BaseMismatchError) return `${name}: it was made for another base. ${error.message}.`;
  const [what, advice] = ADVICE[error.name] ?? ["", ""];
  return what ? `${name}: ${what} (${error.message}). ${advice}.` : `${name}: ${error.message}`;
}
