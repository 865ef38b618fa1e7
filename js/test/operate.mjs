// An operation by its name and arguments, as vectors and lineages write them.
import { add, interpolate, merge, quantize, scale, slice, truncate } from "../dist/index.js";

export function operate(operation, inputs, args, title) {
  const { dtype, sample_size: sampleSize, ...rest } = args;
  const options = { dtype, sampleSize, title };
  const weights = rest.weights?.map((weight) => weight);
  switch (operation) {
    case "add":
      return add(inputs, { ...options, weights });
    case "interpolate":
      return interpolate(...inputs, rest.alpha, options);
    case "scale":
      return scale(...inputs, rest.factor, options);
    case "slice":
      return slice(...inputs, rest.selectors, options);
    case "truncate":
      return truncate(...inputs, rest, options);
    case "quantize":
      return quantize(...inputs, dtype, rest.max_error, options);
    case "merge": {
      const { method, ...merging } = rest;
      return merge(inputs, method, { ...options, ...merging });
    }
    default:
      throw new Error(`${operation} is no operation of this package`);
  }
}
