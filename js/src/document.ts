// The metadata document but for its columns: fields of section 5.2, in the order of section 9.
import { MetadataError, VersionError } from "./errors.js";
import { isInteger, isObject, JsonError, parse, type Json, type JsonObject } from "./json.js";
import { readLineage } from "./lineage.js";
import { isComponent, isIndexed, isRepository, isRevision, STACKED } from "./names.js";

export const FORMAT = "svdiff-delta";
export const VERSION = 1;
const FEATURES: readonly string[] = [STACKED];
const FIELDS: readonly string[] = ["format", "version", "must_understand", "base", "parameters", "lineage", "training"];

/** The fields of a document; `lineage` has all members that section 8 writes out. */
export interface Fields {
  features: readonly string[];
  base: JsonObject;
  columns: JsonObject;
  lineage: JsonObject | null;
  training: JsonObject | null;
  unknown: JsonObject;
}

function refuse(field: string, why: string): never {
  throw new MetadataError(`${field} ${why}`, field);
}

/** Read the string under `svdiff`. Raises MetadataError and VersionError. */
export function readDocument(text: string | undefined): Fields {
  if (text === undefined) refuse("svdiff", "is missing in __metadata__: this is no delta file");
  let document: Json;
  try {
    document = parse(text);
  } catch (error) {
    if (error instanceof JsonError) refuse("svdiff", `is not JSON by section 3.2: ${error.message}`);
    throw error;
  }
  if (!isObject(document)) refuse("svdiff", "is not an object");
  const features = readHead(document);
  const base = required(document, "base");
  readBase(base);
  const columns = required(document, "parameters");
  const lineage = document.get("lineage");
  const training = document.get("training");
  const fields = {
    features,
    base,
    columns,
    lineage: lineage === undefined ? null : readLineage(lineage),
    training: null,
  };
  if (training !== undefined && !isObject(training)) refuse("training", "is not an object");
  return {
    ...fields,
    training: training ?? null,
    unknown: new Map([...document].filter(([key]) => !FIELDS.includes(key))),
  };
}

/** Read what stands in front of everything else: another version may have any other form. */
function readHead(document: JsonObject): string[] {
  const [format, version] = [document.get("format"), document.get("version")];
  if (format !== FORMAT) refuse("format", format === undefined ? "is missing" : `is not ${FORMAT}`);
  if (!isInteger(version) || version < 1)
    refuse("version", version === undefined ? "is missing" : "is not an integer from 1");
  if (version !== VERSION) {
    throw new VersionError(`version is ${version}, and only ${VERSION} is known here: get a newer reader`, "version");
  }
  if (!document.has("must_understand")) return [];
  const features = document.get("must_understand");
  if (!Array.isArray(features) || !features.every((item) => typeof item === "string")) {
    refuse("must_understand", "is not an array of strings");
  }
  for (const feature of features as string[]) {
    if (FEATURES.includes(feature)) continue;
    throw new VersionError(
      `must_understand has ${JSON.stringify(feature)}, which is not known here: get a newer reader`,
      "must_understand",
    );
  }
  return features as string[];
}

function required(document: JsonObject, key: string): JsonObject {
  const value = document.get(key);
  if (!isObject(value)) refuse(key, value === undefined ? "is missing" : "is not an object");
  return value;
}

function readBase(base: JsonObject): void {
  const components = base.get("components");
  if (!isObject(components))
    refuse("base.components", components === undefined ? "is missing" : "is not an object of strings");
  for (const [name, value] of components) {
    if (!isComponent(name)) refuse("base.components", `has ${JSON.stringify(name)}, which is no name of a component`);
    if (typeof value !== "string") refuse("base.components", "is not an object of strings");
  }
  const size = base.get("sample_size");
  if (base.has("sample_size") && (!isInteger(size) || size < 1)) refuse("base.sample_size", "is not an integer from 1");
  if (base.has("attentions")) readAttentions(base.get("attentions"));
  for (const [key, fits] of [
    ["repository", isRepository],
    ["revision", isRevision],
  ] as const) {
    const value = base.get(key);
    if (!base.has(key)) continue;
    if (typeof value !== "string" || value === "") refuse(`base.${key}`, "is not a string, or is empty");
    if (!fits(value)) refuse(`base.${key}`, `is no ${key} (section 5.2)`);
  }
}

function readAttentions(value: Json | undefined): void {
  const isCount = (item: Json | undefined): boolean => isInteger(item) && item >= 0 && item <= 99;
  const isCounts = (item: Json | undefined): item is number[] =>
    Array.isArray(item) && item.length <= 99 && item.every(isCount);
  const [down, mid, up] = isObject(value) && value.size === 3 ? ["down", "mid", "up"].map((key) => value.get(key)) : [];
  if (!isCounts(down) || !isCounts(up) || down.length !== up.length || !isCount(mid)) {
    refuse("base.attentions", "is not an object of down, mid and up by section 7.5");
  }
}

/** Check rule M15: whether the feature of indexed names is asked for if and only if there are any. */
export function checkFeatures(features: readonly string[], names: readonly string[]): void {
  const indexed = names.find(isIndexed);
  if (indexed !== undefined && !features.includes(STACKED)) {
    throw new MetadataError(`${indexed}: a name with an index, and must_understand does not hold ${STACKED}`, indexed);
  }
  if (indexed === undefined && features.includes(STACKED))
    refuse("must_understand", `holds ${STACKED}, and no name has an index`);
}
