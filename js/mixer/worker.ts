// The worker: holds the deltas, and does all that takes time, so that the page never waits.
import { add, canonical, DeltaError, type Delta, type Dtype, type Weight } from "../src/index.js";
import { blocksOf, compare, squaresOf, type Block, type Pair } from "./blocks.js";
import { open, sentence } from "./check.js";

export type Request =
  | { kind: "open"; files: File[] }
  | { kind: "remove"; index: number }
  | { kind: "mix"; weights: Weight[]; dtype: Dtype; title: string };

export interface Input {
  name: string;
  title: string;
  parameters: number;
  blocks: Block[];
}

export type Answer =
  | { kind: "progress"; done: number; of: number }
  | { kind: "inputs"; base: string; inputs: Input[]; pairs: Pair[]; problems: string[] }
  | { kind: "mixed"; bytes: Uint8Array<ArrayBuffer> }
  | { kind: "refused"; problem: string };

const held: { input: Input; delta: Delta; squares: number; pairs: { cosine: number; conflicts: number }[] }[] = [];
const scope = self as unknown as {
  postMessage(answer: Answer, transfer?: Transferable[]): void;
  onmessage: (event: MessageEvent<Request>) => void;
};
let queue = Promise.resolve();

async function openAll(files: readonly File[]): Promise<void> {
  const problems: string[] = [];
  for (const [done, file] of files.entries()) {
    scope.postMessage({ kind: "progress", done, of: files.length });
    try {
      const delta = await open(file);
      fits(delta);
      const input = {
        name: file.name,
        title: delta.title ?? "",
        parameters: delta.parameters.size,
        blocks: blocksOf(delta),
      };
      const squares = squaresOf(delta);
      const pairs = held.map((other) => compare(other.delta, delta, other.squares * squares));
      held.push({ input, delta, squares, pairs });
    } catch (error) {
      problems.push(sentence(file.name, error));
    }
  }
  tell(problems);
}

/** Refuse a delta of another base than those held. Raises BaseMismatchError. */
function fits(delta: Delta): void {
  for (const { delta: other } of held) {
    const shared = [...delta.parameters.keys()].filter((name) => other.parameters.has(name));
    const differing = shared.find(
      (name) => other.parameters.get(name)?.fingerprint !== delta.parameters.get(name)?.fingerprint,
    );
    if (differing !== undefined) add([other, delta]); // says why
  }
}

function tell(problems: string[]): void {
  const pairs = held.flatMap(({ pairs: own }, second) => own.map((pair, first) => ({ first, second, ...pair })));
  const base = held[0]?.delta.base;
  const repository = base?.get("repository");
  const said = typeof repository === "string" ? repository : base ? canonical(base.get("components") ?? null) : "";
  scope.postMessage({ kind: "inputs", base: said, inputs: held.map(({ input }) => input), pairs, problems });
}

function mix({ weights, dtype, title }: Extract<Request, { kind: "mix" }>): void {
  try {
    const bytes = add(
      held.map(({ delta }) => delta),
      { weights, dtype, title: title || undefined },
    ).bytes() as Uint8Array<ArrayBuffer>;
    scope.postMessage({ kind: "mixed", bytes }, [bytes.buffer]);
  } catch (error) {
    scope.postMessage({ kind: "refused", problem: error instanceof DeltaError ? `${error.message}.` : String(error) });
  }
}

scope.onmessage = ({ data }) => {
  queue = queue.then(async () => {
    if (data.kind === "open") await openAll(data.files);
    else if (data.kind === "mix") mix(data);
    else {
      held.splice(data.index, 1);
      for (const item of held.slice(data.index)) item.pairs.splice(data.index, 1);
      tell([]);
    }
  });
};
