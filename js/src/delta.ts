// A delta: read from a file, written to its canonical one (sections 3 to 5).
import { canonicalOrder, joined, readContainer, writeContainer, type Tensor } from "./container.js";
import { checkFeatures, FORMAT, readDocument, VERSION } from "./document.js";
import { InputError, MetadataError, TensorError } from "./errors.js";
import { canonical, depth, DEEPEST, isWellFormed, type Json, type JsonObject } from "./json.js";
import { isIndexed, STACKED } from "./names.js";
import type { Source } from "./lineage.js";
import {
  checkNames,
  checkSlice,
  lengthOf,
  parameter,
  readColumns,
  scalesSize,
  withoutMinusZero,
  writeColumns,
  type Layout,
  type Parameter,
  type Stored,
} from "./parameter.js";
import { DTYPES, ITEM_SIZE, type Dtype } from "./numbers.js";
import { hexDigest, hexDigestLater } from "./sha256.js";

export const SCALES = "svdiff.scales";
const HASH = "modelspec.hash_sha256";

/** The SHA-256 of a file and of its data section, in hexadecimal. */
interface Digests {
  sha256: string;
  digest: string;
}

/** What a delta is made of. */
export interface Parts {
  /** By name, in ascending order. */
  parameters: ReadonlyMap<string, Parameter>;
  base: JsonObject;
  lineage: JsonObject | null;
  training: JsonObject | null;
  /** Members of the document that are not known; they are kept. */
  unknown: JsonObject;
  /** `__metadata__` without `svdiff`. */
  strings: ReadonlyMap<string, string>;
}

/** A delta file's content. It does not change: operations return new ones. */
export class Delta implements Parts {
  readonly parameters: ReadonlyMap<string, Parameter>;
  readonly base: JsonObject;
  readonly lineage: JsonObject | null;
  readonly training: JsonObject | null;
  readonly unknown: JsonObject;
  readonly strings: ReadonlyMap<string, string>;
  private digests: Digests | undefined;

  /** `digests` are those of the file that the parts were read from, or what returns them when they are asked for. */
  constructor(
    parts: Parts,
    private readonly from?: () => Digests,
  ) {
    this.parameters = parts.parameters;
    this.base = parts.base;
    this.lineage = parts.lineage;
    this.training = parts.training;
    this.unknown = parts.unknown;
    this.strings = parts.strings;
  }

  /** The title, if it has one. */
  get title(): string | undefined {
    return this.strings.get("modelspec.title");
  }

  /** What a lineage says of this delta: of the file it was read from, else of its canonical one. */
  get source(): Source {
    this.digests ??= this.from ? this.from() : digestsOf(this.bytes());
    return { ...this.digests, title: this.title, training: this.training, lineage: this.lineage };
  }

  /** Return the canonical file. Raises MetadataError where the document would be nested too deep. */
  bytes(): Uint8Array {
    const tensors = tensorsOf([...this.parameters.values()]);
    const strings = new Map(this.strings).set("svdiff", canonical(documentOf(this)));
    if (strings.has(HASH)) strings.set(HASH, `0x${hexDigest(joined(tensors))}`);
    for (const [key, text] of strings) {
      if (!isWellFormed(key + "\n" + text)) throw new InputError(`${key}: it has half of a surrogate pair`, key);
    }
    return writeContainer(strings, tensors);
  }
}

function digestsOf(file: Uint8Array): Digests {
  return { sha256: hexDigest(file), digest: hexDigest(dataOf(file)) };
}

function dataOf(file: Uint8Array): Uint8Array {
  return file.subarray(8 + Number(new DataView(file.buffer, file.byteOffset, 8).getBigUint64(0, true)));
}

function documentOf(delta: Delta): JsonObject {
  const layouts = [...delta.parameters.values()];
  const document: JsonObject = new Map<string, Json>([
    ...delta.unknown,
    ["format", FORMAT],
    ["version", VERSION],
    ["base", delta.base],
    ["parameters", writeColumns(layouts)],
  ]);
  if (layouts.some(({ name }) => isIndexed(name))) document.set("must_understand", [STACKED]);
  if (delta.lineage) document.set("lineage", delta.lineage);
  if (delta.training) document.set("training", delta.training);
  if (depth(document) > DEEPEST) {
    throw new MetadataError(
      `the document would be nested more than ${DEEPEST} deep: take a level out of the arguments or training facts`,
      "svdiff",
    );
  }
  return document;
}

function tensorsOf(parameters: readonly Parameter[]): Tensor[] {
  const tensors: Tensor[] = parameters.map(({ name, stored }) => {
    const { dtype, data } = withoutMinusZero(stored);
    return { name, dtype, data, shape: [data.length / ITEM_SIZE[dtype]] };
  });
  const scales = parameters.map(({ stored }) => stored.scales).filter(({ length }) => length);
  if (scales.length) {
    const data = joined(scales.map((part) => ({ name: SCALES, dtype: "F16", shape: [], data: part })));
    tensors.push({ name: SCALES, dtype: "F16", shape: [data.length / 2], data });
  }
  return canonicalOrder(tensors);
}

/** Read a delta file strictly: every rule of sections 3.3, 4.5, 5.4 and 9 is checked, of all values. Raises FormatError. */
export function read(bytes: Uint8Array | ArrayBuffer): Delta {
  const file = viewOf(bytes);
  return new Delta(partsOf(file), () => digestsOf(file));
}

/** Read a delta file as `read` does, and hash it by the platform's own code where that is there. Rejects with FormatError. */
export async function open(bytes: Uint8Array | ArrayBuffer): Promise<Delta> {
  const file = viewOf(bytes);
  const parts = partsOf(file);
  const [sha256, digest] = await Promise.all([hexDigestLater(file), hexDigestLater(dataOf(file))]);
  return new Delta(parts, () => ({ sha256, digest }));
}

function viewOf(bytes: Uint8Array | ArrayBuffer): Uint8Array {
  if (bytes instanceof Uint8Array) return bytes;
  if (bytes instanceof ArrayBuffer) return new Uint8Array(bytes);
  throw new InputError("file: give the bytes of a file, as a Uint8Array or an ArrayBuffer", "file");
}

function partsOf(file: Uint8Array): Parts {
  const { strings, tensors } = readContainer(file);
  const fields = readDocument(strings.get("svdiff"));
  const scales = tensors.get(SCALES);
  tensors.delete(SCALES);
  const names = [...tensors.keys()].sort();
  if (!names.length) throw new MetadataError("parameters: the file has no tensor", "parameters");
  checkNames(names, fields.base.get("components") as JsonObject);
  const layouts = readColumns(fields.columns, names);
  checkFeatures(fields.features, names);
  layouts.forEach(checkSlice);
  for (const layout of layouts) checkTensor(layout, tensors.get(layout.name) as Tensor);
  const cut = cutScales(
    layouts.filter(({ name }) => tensors.get(name)?.dtype === "I8"),
    scales,
  );
  const parameters = layouts.map((layout) => {
    const { dtype, data: own } = tensors.get(layout.name) as Tensor;
    const stored: Stored = { dtype: dtype as Dtype, data: own, scales: cut.get(layout.name) ?? new Uint8Array(0) };
    return [layout.name, parameter(layout, stored)] as const;
  });
  const { base, lineage, training, unknown } = fields;
  strings.delete("svdiff");
  return { parameters: new Map(parameters), base, lineage, training, unknown, strings };
}

function checkTensor(layout: Layout, { name, dtype, shape }: Tensor): void {
  if (!(DTYPES as readonly string[]).includes(dtype))
    throw new TensorError(`${name}: δ is in ${dtype}, not F32, F16, BF16 or I8`, name);
  const length = lengthOf(layout);
  if (shape.length !== 1 || shape[0] !== length) {
    throw new TensorError(
      `${name}: its tensor has the shape ${shape.join("x") || "()"}, and δ of ${layout.shape.join("x")} has ${length} values`,
      name,
    );
  }
}

function cutScales(counted: readonly Layout[], scales: Tensor | undefined): Map<string, Uint8Array> {
  const bad = (why: string): never => {
    throw new TensorError(`${SCALES}: ${why}`, SCALES);
  };
  if (!counted.length && scales) bad("it is there, and no tensor is I8");
  const result = new Map<string, Uint8Array>();
  if (!counted.length) return result;
  if (!scales) return bad("it is missing, and there are I8 tensors");
  if (scales.dtype !== "F16" || scales.shape.length !== 1) bad("it is not F16 of one dimension");
  let begin = 0;
  for (const layout of counted) {
    const end = begin + scalesSize(layout);
    result.set(layout.name, scales.data.subarray(begin, end));
    begin = end;
  }
  if (begin !== scales.data.length)
    bad(`it has ${scales.data.length / 2} scales, and the I8 tensors need ${begin / 2}`);
  return result;
}
