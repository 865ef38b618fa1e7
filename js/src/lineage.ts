// How a file was calculated, and of what (section 8).
import { MetadataError } from "./errors.js";
import { canonical, isObject, type Json, type JsonObject } from "./json.js";
import { hexDigest } from "./sha256.js";

const DIGEST = /^[0-9a-f]{64}$/;
/** How many bytes a canonical lineage takes at most before entries are left out. */
const LARGEST = 65_536;

function refuse(field: string, why: string): never {
  throw new MetadataError(`${field} ${why}`, field);
}

/** Read `lineage`, and write out what it leaves out. Raises MetadataError. */
export function readLineage(value: Json): JsonObject {
  if (!isObject(value)) refuse("lineage", "is not an object");
  if (typeof value.get("operation") !== "string") refuse("lineage.operation", "is missing, or not a string");
  const result = readOperation(value, (member) => `lineage.${member}`);
  const files = value.get("files");
  if (value.has("files") && !isObject(files)) refuse("lineage.files", "is not an object");
  const entries = [...((files ?? new Map()) as JsonObject)].map(
    ([digest, entry]) => [digest, readEntry(digest, entry)] as const,
  );
  return result.set("files", new Map(entries));
}

function readOperation(value: JsonObject, field: (member: string) => string): JsonObject {
  const operation = value.get("operation");
  if (typeof operation !== "string" || operation === "") refuse(field("operation"), "is not a string, or is empty");
  const result: JsonObject = new Map<string, Json>([["arguments", new Map()], ["inputs", []], ...value]);
  if (!isObject(result.get("arguments"))) refuse(field("arguments"), "is not an object");
  const inputs = result.get("inputs");
  if (!Array.isArray(inputs) || !inputs.every((item) => typeof item === "string" && DIGEST.test(item))) {
    refuse(field("inputs"), "is not an array of digests");
  }
  return result;
}

function readEntry(digest: string, entry: Json): JsonObject {
  const bad = (why: string): never => refuse("lineage.files", `${JSON.stringify(digest.slice(0, 80))} ${why}`);
  if (!DIGEST.test(digest)) bad("is no digest");
  if (!isObject(entry)) return bad("is not an object");
  const own = entry.get("digest");
  if (typeof own !== "string" || !DIGEST.test(own)) bad("has no digest of its data section");
  if (entry.has("title") && typeof entry.get("title") !== "string") bad("has a title that is not a string");
  if (entry.has("training") && !isObject(entry.get("training"))) bad("has a training that is not an object");
  if (!entry.has("operation")) return entry;
  return readOperation(entry, (member) => `lineage.files: ${digest}: ${member}`);
}

/** One input of an operation, as a lineage knows it. */
export interface Source {
  /** The SHA-256 of its file, and that of its data section. */
  readonly sha256: string;
  readonly digest: string;
  readonly title: string | undefined;
  readonly training: JsonObject | null;
  readonly lineage: JsonObject | null;
}

function entryOf({ digest, title, training, lineage }: Source): JsonObject {
  const entry: JsonObject = new Map([...(lineage ?? [])].filter(([key]) => key !== "files"));
  entry.set("digest", digest);
  if (title !== undefined) entry.set("title", title);
  if (training !== null) entry.set("training", training);
  return entry;
}

/** Return the lineage of a result. */
export function lineageOf(sources: readonly Source[], operation: string, args: JsonObject): JsonObject {
  const files: JsonObject = new Map();
  for (const { lineage } of sources) {
    for (const [digest, entry] of (lineage?.get("files") ?? new Map()) as JsonObject) files.set(digest, entry);
  }
  for (const source of sources) files.set(source.sha256, entryOf(source));
  const result: JsonObject = new Map<string, Json>([
    ["arguments", args],
    ["files", files],
    ["inputs", sources.map((source) => source.sha256)],
    ["operation", operation],
  ]);
  return fits(result) ? result : shortened(result, sources, files);
}

function shortened(lineage: JsonObject, sources: readonly Source[], files: JsonObject): JsonObject {
  const digest = hexDigest(new TextEncoder().encode(canonical(files)));
  lineage.set(
    "omitted",
    new Map<string, Json>([
      ["count", files.size],
      ["digest", digest],
    ]),
  );
  lineage.set(
    "files",
    new Map(
      sources.map(({ sha256, digest: own, title }) => {
        const entry: JsonObject = new Map([["digest", own]]);
        return [sha256, title === undefined ? entry : entry.set("title", title)];
      }),
    ),
  );
  return fits(lineage) ? lineage : lineage.set("files", new Map());
}

function fits(lineage: JsonObject): boolean {
  return new TextEncoder().encode(canonical(lineage)).length <= LARGEST;
}
