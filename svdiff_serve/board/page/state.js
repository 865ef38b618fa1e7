// The state of the board: two mixes and how their pictures are painted; pure functions, and its form in the address.

export const VERSION = "1";
export const LONGEST = 8192;
export const MOST = { terms: 16, parts: 64, seeds: 16, stages: 3 };
export const VIEWS = ["one", "ab", "strip"];

/** Return the state that a board begins with. */
export function initial() {
  return {
    a: { terms: [] },
    b: { terms: [] },
    prompt: "",
    negative: "",
    seeds: [0],
    stages: null, // the server's own
    guidance: null,
    size: null,
    view: "one",
    edit: "a",
  };
}

/** Return a term as it comes into a mix. */
export function term(name, weight = 1, parts = []) {
  return { name, weight, parts };
}

/** Return a state with another mix on one side. */
export function withMix(state, side, terms) {
  return { ...state, [side]: { terms } };
}

/** Return a state in which one term of a side is changed. */
export function withTerm(state, side, name, change) {
  const terms = state[side].terms.map((each) => (each.name === name ? { ...each, ...change(each) } : each));
  return withMix(state, side, terms);
}

/**
 * Return parts with the factor of a selector; null takes it out. Of several parts that name a parameter the last one
 * counts, so they keep the order given: subsets, wide before narrow, then blocks. What it does not name comes first.
 */
export function withPart(parts, order, selector, factor) {
  const kept = parts.filter(([each]) => each !== selector);
  if (factor !== null) kept.push([selector, factor]);
  const place = new Map(order.map((each, index) => [each, index]));
  return kept
    .map((part, index) => ({ part, at: place.get(part[0]) ?? -1, index }))
    .sort((x, y) => x.at - y.at || x.index - y.index)
    .map(({ part }) => part);
}

/** Return a mix in words. */
export function words(mix) {
  if (!mix.terms.length) return "the base alone";
  return mix.terms
    .map(({ name, weight, parts }) => `${name} ${number(weight)}${parts.length ? " in parts" : ""}`)
    .join(" + ");
}

function number(value) {
  return String(value).replace("-", "−");
}

/** Return a mix as the server takes it. */
export function sent(mix) {
  return { terms: mix.terms.map(({ name, weight, parts }) => ({ name, weight, parts })) };
}

// -- the address

function escape(text) {
  return encodeURIComponent(text).replace(/[!*'()~]/g, (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`);
}

function printMix(mix) {
  return mix.terms
    .map(({ name, weight, parts }) =>
      [weight === 1 ? escape(name) : `${escape(name)}:${weight}`, ...parts.map(([s, f]) => `${escape(s)}:${f}`)].join(
        "~",
      ),
    )
    .join("+");
}

/** Return a state as the fragment of an address, without its #; what is as in the beginning is left out. */
export function print(state) {
  const fields = [
    ["a", printMix(state.a)],
    ["b", printMix(state.b)],
    ["p", escape(state.prompt)],
    ["n", escape(state.negative)],
    ["s", state.seeds.join() === "0" ? "" : state.seeds.join()],
    ["t", state.stages ? state.stages.join() : ""],
    ["g", state.guidance === null ? "" : String(state.guidance)],
    ["z", state.size ?? ""],
    ["v", state.view === "one" ? "" : state.view],
    ["e", state.edit === "a" ? "" : state.edit],
  ];
  return [VERSION, ...fields.filter(([, text]) => text).map(([key, text]) => `${key}=${text}`)].join(";");
}

/** A link that cannot be read; its message is a sentence. */
export class LinkError extends Error {}

/**
 * Return the state that a fragment holds, and what of it was ignored.
 *
 * @throws {LinkError} it is of another version, too long, or a part of it does not parse.
 */
export function parse(fragment) {
  const state = initial();
  const ignored = [];
  if (!fragment) return { state, ignored };
  if (fragment.length > LONGEST)
    throw new LinkError(`This link has more than ${LONGEST} characters; no mix is that long.`);
  const [version, ...fields] = fragment.split(";");
  if (version !== VERSION) throw new LinkError("This link is of another version of the board.");
  const seen = new Set();
  for (const field of fields.filter(Boolean)) {
    const mark = field.indexOf("=");
    const key = field.slice(0, mark);
    const text = field.slice(mark + 1);
    const read = mark > 0 && Object.hasOwn(READERS, key) ? READERS[key] : null;
    if (seen.has(key)) throw new LinkError(`This link is damaged: it says ${JSON.stringify(key.slice(0, 40))} twice.`);
    seen.add(key);
    if (read) Object.assign(state, read(text));
    else ignored.push(field.slice(0, 40));
  }
  return { state, ignored };
}

function plain(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new LinkError(`This link is damaged: ${JSON.stringify(text.slice(0, 40))} is not readable.`);
  }
}

function finite(text) {
  const value = text.trim() === "" ? Number.NaN : Number(text);
  if (!Number.isFinite(value) || Math.abs(value) > 1e6)
    throw new LinkError(`This link is damaged: ${JSON.stringify(text.slice(0, 40))} is not a number that can be used.`);
  return value;
}

function wholes(text, most, least) {
  const values = text.split(",").map(finite);
  if (values.length > most || values.some((value) => !Number.isSafeInteger(value) || value < least))
    throw new LinkError(
      `This link is damaged: ${JSON.stringify(text.slice(0, 40))} are not ${most} whole numbers or fewer.`,
    );
  return values;
}

function weighted(text, fallback) {
  const [name, weight, ...more] = text.split(":");
  if (!name || more.length || (weight === undefined && fallback === undefined))
    throw new LinkError(`This link is damaged: ${JSON.stringify(text.slice(0, 40))} is no part of a mix.`);
  return [plain(name), weight === undefined ? fallback : finite(weight)];
}

function parseMix(text) {
  const terms = text.split("+").map((text) => {
    const [head, ...rest] = text.split("~");
    const [name, weight] = weighted(head, 1);
    if (rest.length > MOST.parts) throw new LinkError(`This link has more than ${MOST.parts} parts of one δ.`);
    const parts = rest.map((each) => weighted(each));
    if (new Set(parts.map(([selector]) => selector)).size < parts.length)
      throw new LinkError(`This link is damaged: it names a part of ${name} twice.`);
    return term(name, weight, parts);
  });
  if (terms.length > MOST.terms) throw new LinkError(`This link has more than ${MOST.terms} δ in one mix.`);
  if (new Set(terms.map(({ name }) => name)).size < terms.length)
    throw new LinkError("This link is damaged: it names a δ twice in one mix.");
  return { terms };
}

function oneOf(text, known) {
  if (!known.includes(text))
    throw new LinkError(`This link is damaged: ${JSON.stringify(text.slice(0, 40))} is unknown.`);
  return text;
}

function sized(text) {
  if (!/^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$/.test(text))
    throw new LinkError(`This link is damaged: ${JSON.stringify(text.slice(0, 40))} is no size.`);
  return text;
}

function rising(text) {
  const stages = wholes(text, MOST.stages, 1);
  if (stages.some((steps, index) => index && steps <= stages[index - 1]))
    throw new LinkError(`This link is damaged: the steps ${stages.join(", ")} do not rise.`);
  return stages;
}

const READERS = {
  a: (text) => ({ a: parseMix(text) }),
  b: (text) => ({ b: parseMix(text) }),
  p: (text) => ({ prompt: plain(text) }),
  n: (text) => ({ negative: plain(text) }),
  s: (text) => ({ seeds: wholes(text, MOST.seeds, 0) }),
  t: (text) => ({ stages: rising(text) }),
  g: (text) => ({ guidance: finite(text) }),
  z: (text) => ({ size: sized(text) }),
  v: (text) => ({ view: oneOf(text, VIEWS) }),
  e: (text) => ({ edit: oneOf(text, ["a", "b"]) }),
};
