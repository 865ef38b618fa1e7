// What is to be painted for a state: one frame for each picture that is shown, and the request that paints those asked for.
import { sent, words } from "./state.js";

export const STRIP = [0, 0.25, 0.5, 0.75, 1];
const SEEDS = { one: 16, ab: 8, strip: 3 };

/** Return how many of its seeds a view shows. */
export function seedsShown(state) {
  return Math.min(state.seeds.length, SEEDS[state.view]);
}

/** Return the steps of each stage of a state. */
export function stagesOf(state, base) {
  if (state.stages) return state.stages;
  return base.steps > FIRST ? [FIRST, base.steps] : [base.steps];
}

/** Steps of the first picture: few enough to follow the hand. */
export const FIRST = 4;

/**
 * Return the frames of a state and the request that they share.
 *
 * @param {object} state the state.
 * @param {object} base what the server says of its base.
 * @param {(name: string) => string} digest of a δ: a file that is replaced makes other pictures.
 */
export function jobOf(state, base, digest) {
  const mixes = state.view === "one" ? [state[state.edit]] : [state.a, state.b];
  const common = {
    prompt: state.prompt,
    negative: state.negative,
    guidance: state.guidance,
    size: state.size,
  };
  const stages = stagesOf(state, base);
  const ids = mixes.map((mix) => JSON.stringify([sent(mix), mix.terms.map(({ name }) => digest(name))]));
  const settings = JSON.stringify([common, base.started]);
  const frames = state.seeds
    .slice(0, SEEDS[state.view])
    .flatMap((seed) => sharesOf(state).map((share) => ({ seed, share })));
  for (const frame of frames) {
    const pure = frame.share.indexOf(1);
    const what = pure >= 0 ? ids[pure] : JSON.stringify([ids, frame.share]);
    frame.id = `${frame.share.join("-")}/${frame.seed}`;
    frame.key = `${what} ${frame.seed} ${settings} ${stages.at(-1)}`;
    frame.side = state.view === "one" ? state.edit : frame.share[0] === 1 ? "a" : frame.share[1] === 1 ? "b" : "";
    frame.alt = altOf(state, mixes, frame);
  }
  const checked = ids.map((id) => JSON.stringify([id, base.started]));
  return { mixes, checked, common, stages, frames, view: state.view };
}

function sharesOf(state) {
  if (state.view === "one") return [[1]];
  if (state.view === "ab") return [[1, 0], [0, 1]]; // prettier-ignore
  return STRIP.map((t) => [1 - t, t]);
}

function altOf(state, mixes, { share, seed }) {
  const prompt = state.prompt ? `“${state.prompt}”` : "no prompt";
  const pure = share.indexOf(1);
  const what =
    pure >= 0
      ? words(mixes[pure])
      : `${Math.round(100 * share[0])} % of A (${words(mixes[0])}) and ${Math.round(100 * share[1])} % of B (${words(mixes[1])})`;
  return `Picture painted with ${what}: ${prompt}, seed ${seed}`;
}

/** Return the body of the request for some frames of a job. */
export function requestOf(job, frames, client, move) {
  return {
    client,
    move,
    mixes: job.mixes.map(sent),
    pictures: frames.map(({ share, seed }) => ({ share, seed })),
    stages: job.stages,
    ...job.common,
  };
}
