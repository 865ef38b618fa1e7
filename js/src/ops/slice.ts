// `slice`: the parameters that selectors name (sections 7.3 and 7.5).
import type { Delta } from "../delta.js";
import { withoutMinusZero, type Layout, type Parameter } from "../parameter.js";
import { names, type SelectOptions } from "../selectors.js";
import { layoutOf, result, type Common } from "./combine.js";

/** Keep the parameters that any selector names, with values and number formats untouched. Raises SelectionError. */
export function slice(delta: Delta, selectors: readonly string[], options: Common & SelectOptions = {}): Delta {
  const all = [...delta.parameters.values()];
  const wanted = names(all, selectors, delta.base, options);
  const kept = all.filter(({ name }) => wanted.has(name)).map(layoutOf);
  const stored = ({ name }: Layout) => withoutMinusZero((delta.parameters.get(name) as Parameter).stored);
  return result(
    [delta],
    kept,
    stored,
    "slice",
    { selectors: [...selectors], sample_size: options.sampleSize },
    options,
  );
}
