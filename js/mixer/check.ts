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

/** No delta of the models in use is near it (one of a language model of 405 billion weights has 57 MB). */
export const LARGEST_FILE = 256 * 2 ** 20;

const ADAPTER = /lora_|\.lora|hada_|lokr_|\.alpha$|dora_scale/;

/** Read a dropped file. Raises DeltaError whose message is a sentence. */
export async function open(file: Blob & { name: string }): Promise<Delta> {
  const header = await openHeader(file);
  const strings = header.strings;
  if (!strings.has("svdiff")) throw new DeltaError(foreign(file.name, [...header.header.keys()], strings));
  if (file.size > LARGEST_FILE) {
    throw new DeltaError(
      `it has ${megabytes(file.size)} MB, and this page takes files of ${megabytes(LARGEST_FILE)} MB: combine it with svdiff add.`,
    );
  }
  return openBytes(new Uint8Array(await file.arrayBuffer()));
}

async function openHeader(file: Blob): Promise<ReturnType<typeof parseHeader>> {
  const start = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  const length = Math.min(headerLength(start, file.size), LONGEST_HEADER);
  return parseHeader(new Uint8Array(await file.slice(8, 8 + length).arrayBuffer()));
}

function foreign(name: string, keys: readonly string[], strings: ReadonlyMap<string, string>): string {
  const file = JSON.stringify(name);
  if (strings.has("svdiff.difference"))
    return `it holds the whole change of the weights: svdiff convert ${file} delta.safetensors --base BASE makes a delta of it.`;
  if (strings.has("svdiff.adapter") || keys.some((key) => ADAPTER.test(key))) {
    return `it is a LoRA or another adapter: svdiff convert ${file} delta.safetensors --base BASE makes a delta of it.`;
  }
  if (keys.some((key) => /\.weight$/.test(key))) {
    return `it is a checkpoint, with the weights themselves: svdiff convert ${file} delta.safetensors --base BASE makes a delta of what was tuned.`;
  }
  return "it is a safetensors file, and no delta: drop one that svdiff train, convert or add wrote.";
}

function megabytes(size: number): number {
  return Math.round(size / 2 ** 20);
}

const ADVICE: Record<string, string> = {
  HeaderError: "The file is damaged or no safetensors file: fetch it again.",
  MetadataError: "What the file says of itself is wrong: ask its maker for another one.",
  TensorError: "Its numbers are wrong: ask its maker for another one.",
  VersionError: "It needs a newer version of this page.",
};

/** Return what is wrong with a file, as a sentence. */
export function sentence(name: string, error: unknown): string {
  if (!(error instanceof DeltaError))
    return `${name}: it could not be read (${error instanceof Error ? error.name : "unknown"}): choose it again.`;
  if (error instanceof BaseMismatchError) return `${name}: it was made for another base. ${error.message}.`;
  const advice = ADVICE[error.name];
  return advice ? `${name}: ${error.message}. ${advice}` : `${name}: ${error.message}`;
}
