// The public API: reads, writes and combines SVDiff delta files by version 1 of their specification.
export { Delta, open, read, type Parts } from "./delta.js";
export {
  BaseMismatchError,
  DeltaError,
  FormatError,
  HeaderError,
  InputError,
  MetadataError,
  SelectionError,
  TensorError,
  VersionError,
} from "./errors.js";
export { chooseDtype, findRuns, fingerprint, roundWeight } from "./fingerprint.js";
export { canonical, fromPlain, plain, Real, type Json, type JsonObject } from "./json.js";
export {
  headerLength,
  LONGEST_HEADER,
  LONGEST_METADATA,
  parseHeader,
  readContainer,
  type Container,
  type Tensor,
} from "./container.js";
export type { Dtype, Float } from "./numbers.js";
export { add, interpolate, scale, type SumOptions } from "./ops/arithmetic.js";
export type { Common } from "./ops/combine.js";
export { merge, type MergeOptions, type Method } from "./ops/merge.js";
export { quantize } from "./ops/quantize.js";
export { slice } from "./ops/slice.js";
export { truncate, type Keep } from "./ops/truncate.js";
export type { Weight } from "./ops/weights.js";
export type { Kind, Layout, Parameter, Run, Stored } from "./parameter.js";
export { names, type SelectOptions } from "./selectors.js";
export { sha256 } from "./sha256.js";
export { shake256 } from "./shake256.js";
