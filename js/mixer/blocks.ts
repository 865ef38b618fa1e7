// Blocks of a base by the names of parameters, sizes of shifts in them, and what two deltas have in common.
import type { Delta } from "../src/index.js";

/** One row of bars: a block, the glob that names it, and Σ δ² of what a delta has there. */
export interface Block {
  label: string;
  selector: string;
  squares: number;
}

/** How two deltas, by their numbers, lie to each other: cosine of the angle, and the share of shared shifts whose signs differ. */
export interface Pair {
  first: number;
  second: number;
  cosine: number;
  conflicts: number;
}

/** Return the label of the block that a parameter is part of: component, and the first row of blocks with its number. */
function blockOf(name: string): { label: string; selector: string } {
  const match = /^(.*?\.(?:mid_block|(?:\w*blocks|layers|layer|h)\.[0-9]+))\./.exec(name);
  if (match) return { label: match[1] as string, selector: `${match[1]!.replace(/[*?[]/g, "[$&]")}.*` };
  return { label: `${name.slice(0, name.indexOf("."))}, other`, selector: "" };
}

/** Return the blocks of a delta in the order of their names. */
export function blocksOf(delta: Delta): Block[] {
  const blocks = new Map<string, Block>();
  for (const [name, { values }] of delta.parameters) {
    const { label, selector } = blockOf(name);
    const block = blocks.get(label) ?? { label, selector, squares: 0 };
    for (const value of values) block.squares += value * value;
    blocks.set(label, block);
  }
  return [...blocks.values()].sort((a, b) => a.label.localeCompare(b.label, "en", { numeric: true }));
}

/** Return how one pair of deltas lie to each other; a parameter that one lacks counts as zeros there. */
export function compare(a: Delta, b: Delta, squares: number): { cosine: number; conflicts: number } {
  let dot = 0;
  let both = 0;
  let against = 0;
  for (const [name, { values }] of a.parameters) {
    const other = b.parameters.get(name)?.values;
    if (!other) continue;
    for (let i = 0; i < values.length; i++) {
      const product = values[i]! * other[i]!; // of F32 numbers: exact in F64, and 0 only where one is
      dot += product;
      if (product > 0) both++;
      else if (product < 0) against++;
    }
  }
  both += against;
  return { cosine: squares ? dot / Math.sqrt(squares) : 0, conflicts: both ? against / both : 0 };
}
