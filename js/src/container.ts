// The safetensors container: strict reading (section 3.3) and the canonical form (section 3.4).
import { HeaderError } from "./errors.js";
import { canonical, isObject, JsonError, parse, type Json, type JsonObject } from "./json.js";

export const LONGEST_HEADER = 14_000_000;
export const LONGEST_METADATA = 6_000_000;

const SIZES: Record<string, number> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
};

/** One tensor of a container. */
export interface Tensor {
  name: string;
  dtype: string;
  shape: readonly number[];
  data: Uint8Array;
}

/** What a container holds. */
export interface Container {
  strings: Map<string, string>;
  tensors: Map<string, Tensor>;
}

/** Return the length of a header from the first 8 bytes of a file of `size` bytes (rules H1 to H3). */
export function headerLength(start: Uint8Array, size: number): number {
  if (start.length < 8)
    throw new HeaderError("the file has fewer than 8 bytes: it is no safetensors file, or was cut off");
  const length = new DataView(start.buffer, start.byteOffset, 8).getBigUint64(0, true);
  if (length > BigInt(LONGEST_HEADER)) {
    throw new HeaderError(
      `the header would take ${length} bytes, more than ${LONGEST_HEADER}: it is no safetensors file, or holds too many weights`,
    );
  }
  if (size < 8 + Number(length))
    throw new HeaderError("the file ends within its header: it was cut off, fetch it again");
  return Number(length);
}

/** Parse the bytes of a header (rules H4 and H5). */
export function parseHeader(bytes: Uint8Array): { header: JsonObject; strings: Map<string, string> } {
  const refuse = (why: string, field = ""): never => {
    throw new HeaderError(`the header ${why}`, field);
  };
  const text = utf8(bytes) ?? refuse("is not UTF-8");
  if (!text.startsWith("{")) refuse("does not begin with {");
  const spans = new Map<string, readonly [number, number]>();
  let header: Json;
  try {
    header = parse(text, spans);
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    return refuse(`is not JSON by section 3.2: ${error.message}`, error.key);
  }
  const span = spans.get("__metadata__");
  if (span && bytes.length > LONGEST_METADATA && encoder.encode(text.slice(...span)).length > LONGEST_METADATA) {
    refuse(`has a __metadata__ of more than ${LONGEST_METADATA} bytes`, "__metadata__");
  }
  const strings = (header as JsonObject).get("__metadata__");
  if (
    strings !== undefined &&
    !(isObject(strings) && [...strings.values()].every((value) => typeof value === "string"))
  ) {
    refuse("has a __metadata__ that is not an object of strings", "__metadata__");
  }
  (header as JsonObject).delete("__metadata__");
  return { header: header as JsonObject, strings: (strings ?? new Map()) as Map<string, string> };
}

const encoder = new TextEncoder();

function utf8(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

/** Read a container strictly. Raises HeaderError. */
export function readContainer(file: Uint8Array): Container {
  const length = headerLength(file.subarray(0, 8), file.length);
  const { header, strings } = parseHeader(file.subarray(8, 8 + length));
  const data = file.subarray(8 + length);
  const places = [...header].map(([name, entry]) => place(name, entry));
  places.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let end = 0;
  let last = "";
  for (const { name, begin, end: own } of places) {
    if (begin !== end) {
      const why = begin < end ? `overlaps ${last}` : `begins ${begin - end} bytes behind what comes before it`;
      throw new HeaderError(`${name}: its data ${why}`, name);
    }
    [end, last] = [own, name];
  }
  if (end !== data.length) {
    throw new HeaderError(
      `the data section has ${data.length} bytes, and the tensors ${end}: the file was cut off, or is damaged`,
      last,
    );
  }
  const tensors = places.map(({ name, dtype, shape, begin, end }) => ({
    name,
    dtype,
    shape,
    data: data.subarray(begin, end),
  }));
  return { strings, tensors: new Map(tensors.map((tensor) => [tensor.name, tensor])) };
}

function place(
  name: string,
  entry: Json,
): { name: string; dtype: string; shape: number[]; begin: number; end: number } {
  const refuse = (why: string): never => {
    throw new HeaderError(`${name}: ${why}`, name);
  };
  if (!isObject(entry) || entry.size !== 3)
    return refuse("its entry is not an object of dtype, shape and data_offsets");
  const [dtype, shape, offsets] = [entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")];
  if (typeof dtype !== "string") return refuse("its dtype is not a string");
  if (!isNaturals(shape)) return refuse("its shape is not an array of natural numbers");
  if (!isNaturals(offsets) || offsets.length !== 2) return refuse("its data_offsets are not two natural numbers");
  if (!Object.hasOwn(SIZES, dtype)) return refuse(`the dtype ${JSON.stringify(dtype)} is not known`);
  const [begin, end] = offsets as [number, number];
  let size = shape.includes(0) ? 0 : (SIZES[dtype] as number);
  for (const side of shape) if (size <= Number.MAX_SAFE_INTEGER) size *= side; // beyond that no offsets reach
  if (end - begin !== size) return refuse(`its shape needs ${size} bytes, and its offsets give ${end - begin}`);
  return { name, dtype, shape, begin, end };
}

function isNaturals(value: Json | undefined): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && (item as number) >= 0);
}

/** Return the tensors in the order of the canonical data section. */
export function canonicalOrder(tensors: readonly Tensor[]): Tensor[] {
  return [...tensors].sort(
    (a, b) => (SIZES[b.dtype] as number) - (SIZES[a.dtype] as number) || (a.name < b.name ? -1 : 1),
  );
}

/** Return the bytes of the canonical container. `tensors` are in canonical order. */
export function writeContainer(strings: ReadonlyMap<string, string>, tensors: readonly Tensor[]): Uint8Array {
  const header: JsonObject = new Map<string, Json>([["__metadata__", new Map(strings)]]);
  let end = 0;
  for (const { name, dtype, shape, data } of tensors) {
    const entry = new Map<string, Json>([
      ["dtype", dtype],
      ["shape", [...shape]],
      ["data_offsets", [end, end + data.length]],
    ]);
    header.set(name, entry);
    end += data.length;
  }
  const bytes = encoder.encode(canonical(header));
  const length = Math.ceil(bytes.length / 8) * 8;
  if (length > LONGEST_HEADER)
    throw new HeaderError(`the header would take ${length} bytes, more than ${LONGEST_HEADER}: write several files`);
  const file = new Uint8Array(8 + length + end).fill(0x20, 8 + bytes.length, 8 + length);
  new DataView(file.buffer).setBigUint64(0, BigInt(length), true);
  file.set(bytes, 8);
  let offset = 8 + length;
  for (const { data } of tensors) {
    file.set(data, offset);
    offset += data.length;
  }
  return file;
}

/** Return tensors' data, one after the other. */
export function joined(tensors: readonly Tensor[]): Uint8Array {
  const result = new Uint8Array(tensors.reduce((size, { data }) => size + data.length, 0));
  let offset = 0;
  for (const { data } of tensors) {
    result.set(data, offset);
    offset += data.length;
  }
  return result;
}
