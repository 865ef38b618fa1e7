// Subsets, blocks, components and parts (the tables of section 7.5).
import { COMPONENTS, PATTERNS } from "./modules.js";
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

/** Components that go by a word of the table, and not by their own names. */
const WORDED: readonly string[] = ["unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"];

/** What a weight is part of, by the names of the modules around it. */
interface Part {
  attn: boolean;
  ca: boolean;
  kv: boolean;
  mlp: boolean;
  block: number | undefined;
}

/** Characters of the longest module that a pattern is tried on: the time of some grows with their square. */
const LONGEST = 255;

/** Digits of the largest number of a block. */
const MOST_DIGITS = 9;

function partOf(name: string): Part {
  const modules = name.split(".").slice(1, -1);
  const any = (pattern: RegExp, all = modules): boolean =>
    all.some((module) => module.length <= LONGEST && pattern.test(module));
  const attn = any(PATTERNS.attention) || any(PATTERNS.projection);
  const inner = modules.slice(modules.findIndex((module) => /^[0-9]+$/.test(module)) + 1 || modules.length);
  const block = PATTERNS.block.exec(name)?.[1];
  return {
    attn,
    ca: attn && (any(PATTERNS.cross) || any(PATTERNS.added)),
    kv: attn && any(PATTERNS.keys_and_values),
    mlp: attn
      ? any(PATTERNS.fused)
      : !inner.some((module) => module.includes("norm")) && (any(PATTERNS.feed_forward, inner) || PATTERNS.output.test(name)),
    block: block === undefined || block.length > MOST_DIGITS ? undefined : Number(block),
  };
}

/** Return whether a weight is of an `attn2` that attends to the picture, as the `attn` beside it does. */
function picturesTwice(layouts: readonly Layout[]): (name: string) => boolean {
  const before = (middle: string) =>
    new Set(layouts.filter(({ name }) => name.includes(middle)).map(({ name }) => name.split(middle, 1)[0]));
  const [attn, attn1] = [before(".attn."), before(".attn1.")];
  return (name) => {
    const block = name.split(".attn2.", 1)[0];
    return block !== name && attn.has(block) && !attn1.has(block);
  };
}

/** Return the test of a part, given all that is at hand, or undefined where the word is none. */
function partTest(layouts: readonly Layout[], word: string): Test | undefined {
  switch (word) {
    case "1d":
    case "2d":
    case "4d":
      return ({ shape }) => shape.length === Number(word[0]);
    case "conv":
      return ({ shape }) => shape.length > 2;
    case "experts":
      return ({ name }) => PATTERNS.expert.test(name);
    case "attn":
    case "kv":
    case "mlp":
      return ({ name }) => partOf(name)[word];
    case "ca":
    case "ca-kv": {
      const twice = picturesTwice(layouts);
      return ({ name }) => {
        const { ca, kv } = partOf(name);
        return ca && (kv || word === "ca") && !twice(name);
      };
    }
    default:
      return undefined;
  }
}

function componentTest(layouts: readonly Layout[], word: string): Test | undefined {
  if (Object.hasOwn(COMPONENTS, word)) return ({ name }) => COMPONENTS[word]!.test(name);
  const own = new Set(layouts.map(({ name }) => name.slice(0, name.indexOf("."))));
  const fitting = [...own].filter((component) => component.toLowerCase() === word && !WORDED.includes(component));
  return fitting.length ? ({ name }) => fitting.includes(name.slice(0, name.indexOf("."))) : undefined;
}

/** Return what the name of a subset names, in any case of letters, or undefined where it is none. */
export function subset(layouts: readonly Layout[], selector: string): Layout[] | undefined {
  const test = testOf(layouts, selector.toLowerCase());
  return test && layouts.filter(test);
}

function testOf(layouts: readonly Layout[], word: string): Test | undefined {
  const level = /^(up|down)\.([0-9]{1,2})$/.exec(word);
  if (level) return ({ name }) => name.startsWith(`unet.${level[1]}_blocks.${level[2]}.`);
  const blocks = /^(?:([a-z0-9_-]+)-)?block\.([0-9]{1,3})(?:-([0-9]{1,3}))?$/.exec(word);
  if (blocks) {
    const whole = blocks[1] === undefined ? () => true : testOf(layouts, blocks[1]);
    const [first, last] = [Number(blocks[2]), Number(blocks[3] ?? blocks[2])];
    return whole && ((layout) => isWithin(partOf(layout.name).block, first, last) && whole(layout));
  }
  const known = SUBSETS.get(word) ?? partTest(layouts, word) ?? componentTest(layouts, word);
  if (known) return known;
  for (let dash = word.indexOf("-"); dash >= 0; dash = word.indexOf("-", dash + 1)) {
    const first = componentTest(layouts, word.slice(0, dash));
    const second = first && partTest(layouts, word.slice(dash + 1));
    if (first && second) return (layout) => first(layout) && second(layout);
  }
  return undefined;
}

function isWithin(block: number | undefined, first: number, last: number): boolean {
  return block !== undefined && first <= block && block <= last;
}
