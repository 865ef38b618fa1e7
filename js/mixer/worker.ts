// The worker: holds the deltas, and does all that takes time, so that the page never waits.
import { add, canonical, DeltaError, type Delta, type Dtype, type Weight } from "../src/index.js";
import { blocksOf, compare, type Block, type Pair } from "./blocks.js";
import { open, sentence } from "./check.js";

export type Request =
  | { kind: "open"; files: File[] }
  | { kind: "remove"; id: number }
  | { kind: "mix"; weights: Map<number, Weight>; dtype: Dtype; title: string };

export interface Input {
  /** Its own for each file that is read, in ascending order. */
  id: number;
  name: string;
  title: string;
  parameters: number;
  blocks: Block[];
}

export type Answer =
  | { kind: "progress"; done: number; of: number }
  | { kind: "read"; base: string; input: Input; pairs: Pair[] }
  | { kind: "refused"; problem: string }
  | { kind: "ready" }
  | { kind: "mixed"; bytes: Uint8Array<ArrayBuffer> };

const held: { id: number; delta: Delta; squares: number }[] = [];
const scope = self as unknown as {
  postMessage(answer: Answer, transfer?: Transferable[]): void;
  onmessage: (event: MessageEvent<Request>) => void;
};
let queue = Promise.resolve();
let next = 0;

async function openAll(files: readonly File[]): Promise<void> {
  for (const [done, file] of files.entries()) {
    scope.postMessage({ kind: "progress", done, of: files.length });
    try {
      const delta = await open(file);
      fits(delta);
      const id = next++;
      const blocks = blocksOf(delta);
      const squares = blocks.reduce((sum, block) => sum + block.squares, 0);
      const pairs = held.map((other) => ({
        first: other.id,
        second: id,
        ...compare(other.delta, delta, other.squares * squares),
      }));
      held.push({ id, delta, squares });
      const input = { id, name: file.name, title: delta.title ?? "", parameters: delta.parameters.size, blocks };
      scope.postMessage({ kind: "read", base: baseOf(delta), input, pairs });
    } catch (error) {
      scope.postMessage({ kind: "refused", problem: sentence(file.name, error) });
    }
  }
  scope.postMessage({ kind: "ready" });
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

function baseOf({ base }: Delta): string {
  const repository = base.get("repository");
  return typeof repository === "string" ? repository : canonical(base.get("components") ?? null);
}

function mix({ weights, dtype, title }: Extract<Request, { kind: "mix" }>): void {
  try {
    const bytes = add(
      held.map(({ delta }) => delta),
      { weights: held.map(({ id }) => weights.get(id) ?? 1), dtype, title: title || undefined },
    ).bytes() as Uint8Array<ArrayBuffer>;
    scope.postMessage({ kind: "mixed", bytes }, [bytes.buffer]);
  } catch (error) {
    const why = error instanceof DeltaError ? error.message : String(error);
    scope.postMessage({ kind: "refused", problem: `This mix cannot be saved: ${why}.` });
    scope.postMessage({ kind: "ready" });
  }
}

scope.onmessage = ({ data }) => {
  queue = queue.then(async () => {
    if (data.kind === "open") await openAll(data.files);
    else if (data.kind === "mix") mix(data);
    else {
      const place = held.findIndex(({ id }) => id === data.id);
      if (place >= 0) held.splice(place, 1);
    }
  });
};
