// Subsets, blocks of a UNet, components and parts (the tables of section 7.5).
import { SelectionError } from "./errors.js";
import { isIndexed } from "./names.js";
import type { Layout } from "./parameter.js";

type Test = (layout: Layout) => boolean;

const CROSS = String.raw`\.(attn2\.to_(q|k|v|out\.0)|add_[kv]_proj)\.weight`;
const KEYS = String.raw`\.(attn2\.to_[kv]|add_[kv]_proj)\.weight`;

const SUBSETS = new Map<string, Test>(
  (
    [
      ["unet", "unet.", "", 0],
      ["unet-ca", "unet.", CROSS, 0],
      ["unet-ca-kv", "unet.", KEYS, 0],
      ["unet-1d", "unet.", "", 1],
      ["unet-2d", "unet.", "", 2],
      ["unet-4d", "unet.", "", 4],
      ["up", "unet.up_blocks.", "", 0],
      ["down", "unet.down_blocks.", "", 0],
      ["mid", "unet.mid_block.", "", 0],
      ["up-ca", "unet.up_blocks.", CROSS, 0],
      ["down-ca", "unet.down_blocks.", CROSS, 0],
      ["mid-ca", "unet.mid_block.", CROSS, 0],
    ] as const
  ).map(([name, prefix, pattern, dimensions]) => {
    const end = new RegExp(`(?:${pattern})$`);
    return [
      name,
      ({ name: own, shape }) => own.startsWith(prefix) && end.test(own) && [0, shape.length].includes(dimensions),
    ];
  }),
);

const COMPONENTS = new Map<string, RegExp>([
  ["unet", /^unet\./],
  ["transformer", /^transformer(_[0-9]+)?\./],
  ["text", /^text_encoder(_[0-9]+)?\./],
  ["text-1", /^text_encoder\./],
  ["text-2", /^text_encoder_2\./],
  ["text-3", /^text_encoder_3\./],
]);
/** Components that go by a word of the table, and not by their own names. */
const WORDED = ["unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"];

const PARTS = new Map<string, Test>([
  ["1d", ({ shape }) => shape.length === 1],
  ["2d", ({ shape }) => shape.length === 2],
  ["4d", ({ shape }) => shape.length === 4],
  ["conv", ({ shape }) => shape.length > 2],
  ["experts", ({ name }) => isIndexed(name) || /\.experts\.[0-9]+\./.test(name)],
]);
/** Parts that are conveniences of an implementation, which this one does not have. */
const ELSEWHERE = /^(attn|ca|kv|ca-kv|mlp|block\.[0-9]+(-[0-9]+)?)$/;

/** Return what the name of a subset names, in any case of letters, or undefined where it is none. */
export function subset(layouts: readonly Layout[], selector: string): Layout[] | undefined {
  const test = testOf(layouts, selector, selector.toLowerCase());
  return test && layouts.filter(test);
}

function testOf(layouts: readonly Layout[], selector: string, lower: string): Test | undefined {
  const known = SUBSETS.get(lower);
  if (known) return known;
  const level = /^(up|down)\.([0-9]+)$/.exec(lower);
  if (level) return ({ name }) => name.startsWith(`unet.${level[1]}_blocks.${level[2]}.`);
  const component = componentTest(layouts, lower);
  if (component) return component;
  const part = partTest(selector, lower);
  if (part) return part;
  for (let dash = lower.indexOf("-"); dash >= 0; dash = lower.indexOf("-", dash + 1)) {
    const first = componentTest(layouts, lower.slice(0, dash));
    const second = first && partTest(selector, lower.slice(dash + 1));
    if (first && second) return (layout) => first(layout) && second(layout);
  }
  return undefined;
}

function componentTest(layouts: readonly Layout[], word: string): Test | undefined {
  const known = COMPONENTS.get(word);
  if (known) return ({ name }) => known.test(name);
  const own = new Set(layouts.map(({ name }) => name.slice(0, name.indexOf("."))));
  const fitting = [...own].filter((component) => component.toLowerCase() === word && !WORDED.includes(component));
  return fitting.length ? ({ name }) => fitting.includes(name.slice(0, name.indexOf("."))) : undefined;
}

function partTest(selector: string, word: string): Test | undefined {
  if (ELSEWHERE.test(word)) {
    throw new SelectionError(
      `${selector}: this implementation does not know layers by ${word}; select them by a glob`,
      selector,
    );
  }
  return PARTS.get(word);
}
