// Addresses of cross-attention blocks of a UNet (section 7.5).
import { SelectionError } from "./errors.js";
import { isObject, type JsonObject } from "./json.js";
import type { Layout } from "./parameter.js";

interface Counts {
  down: readonly number[];
  mid: number;
  up: readonly number[];
}

interface Block {
  address: string;
  prefixes: readonly string[];
}

const ADDRESS = String.raw`\( *([0-9]{1,9}) *, *'?(down|up)'? *, *([0-9]{1,9}) *\)`;
const RANGE = new RegExp(`^${ADDRESS}(?: *- *${ADDRESS})?$`);

/** Return what an address or a range of addresses names, or undefined where the selector is none. Raises SelectionError. */
export function addressed(
  layouts: readonly Layout[],
  selector: string,
  base: JsonObject,
  sampleSize: number | undefined,
): Layout[] | undefined {
  const match = RANGE.exec(selector);
  if (!match) return undefined;
  const parts = match.slice(1).filter((part) => part !== undefined);
  const refuse = (why: string): never => {
    throw new SelectionError(`${selector}: ${why}`, selector);
  };
  const size = sampleSize ?? base.get("sample_size");
  if (typeof size !== "number") return refuse("the base says no sample size; give one");
  const counts =
    countsOf(base) ??
    found(layouts.map(({ name }) => name)) ??
    refuse("the base does not say which blocks it has, and the names do not show it");
  const blocks = blocksOf(counts, size);
  const place = (at: number): number => {
    const address = `${Number(parts[at])},${parts[at + 1]},${Number(parts[at + 2])}`;
    const index = blocks.findIndex((block) => block.address === address);
    return index < 0
      ? refuse(`there is no such block; there are ${blocks.map((block) => `(${block.address})`).join(" ")}`)
      : index;
  };
  const first = place(0);
  const last = parts.length > 3 ? place(3) : first;
  if (last < first) return refuse("the range ends before it begins");
  const prefixes = blocks.slice(first, last + 1).flatMap((block) => block.prefixes);
  const named = layouts.filter(({ name }) => prefixes.some((prefix) => name.startsWith(prefix)));
  return named.length ? named : refuse("no parameter here is part of it");
}

function countsOf(base: JsonObject): Counts | undefined {
  const value = base.get("attentions");
  return isObject(value) ? (Object.fromEntries(value) as unknown as Counts) : undefined;
}

/** Return the counts that names show, or undefined where they show only a part of a UNet. */
function found(names: readonly string[]): Counts | undefined {
  const ways = { down: new Map<number, number>(), up: new Map<number, number>() };
  let mid: number | undefined;
  for (const name of names) {
    const level = /^unet\.(down|up)_blocks\.([0-9]+)\.(?:attentions\.([0-9]+)\.)?/.exec(name);
    if (level) {
      const counts = ways[level[1] as "down" | "up"];
      counts.set(
        Number(level[2]),
        Math.max(counts.get(Number(level[2])) ?? 0, level[3] === undefined ? 0 : Number(level[3]) + 1),
      );
    }
    const middle = /^unet\.mid_block\.(?:attentions\.([0-9]+)\.)?/.exec(name);
    if (middle) mid = Math.max(mid ?? 0, middle[1] === undefined ? 0 : Number(middle[1]) + 1);
  }
  const levels = ways.down.size;
  const all = Array.from({ length: levels }, (_, i) => i);
  if (
    mid === undefined ||
    levels === 0 ||
    levels !== ways.up.size ||
    !all.every((i) => ways.down.has(i) && ways.up.has(i))
  )
    return undefined;
  return { down: all.map((i) => ways.down.get(i)!), mid, up: all.map((i) => ways.up.get(i)!) };
}

/** Return the blocks in the order of the forward pass. */
function blocksOf({ down, mid, up }: Counts, size: number): Block[] {
  const blocks: Block[] = [];
  const indices = new Map<string, number>();
  const put = (depth: number, way: string, prefixes: readonly string[]): void => {
    const key = `${Math.floor(size / 2 ** depth)},${way}`;
    const index = indices.get(key) ?? 0;
    indices.set(key, index + 1);
    blocks.push({ address: `${key},${index}`, prefixes });
  };
  const level = (way: "down" | "up", i: number, j: number): string[] =>
    ["attentions", "resnets"].map((part) => `unet.${way}_blocks.${i}.${part}.${j}.`);
  down.forEach((count, i) => {
    for (let j = 0; j < count; j++) put(i, "down", level("down", i, j));
  });
  const resnets = [0, 1].map((j) => `unet.mid_block.resnets.${j}.`);
  for (let j = 0; j < mid; j++) put(down.length - 1, "down", [`unet.mid_block.attentions.${j}.`, ...resnets]);
  up.forEach((count, i) => {
    for (let j = 0; j < count; j++) put(up.length - 1 - i, "up", level("up", i, j));
  });
  return blocks;
}
