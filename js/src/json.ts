// Strict JSON in (section 3.2), and canonical JSON out (RFC 8785).

/** A number that is written with a fraction or an exponent and whose value is whole: it is no integer. */
export class Real {
  constructor(readonly value: number) {}
}

export type Json = null | boolean | number | Real | string | Json[] | JsonObject;
export type JsonObject = Map<string, Json>;

/** Why a text is not strict JSON; `key` is the key that stands twice, if that is the reason. */
export class JsonError extends Error {
  constructor(
    message: string,
    readonly key = "",
  ) {
    super(message);
  }
}

export const DEEPEST = 12;

const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
const PLAIN = /[^"\\\u0000-\u001f]*/y;
const ESCAPES: Record<string, string> = { '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

/** Return whether a value is an integer by section 3.2. */
export function isInteger(value: unknown): value is number {
  return Number.isSafeInteger(value);
}

/** Return whether a value is an object by section 3.2. */
export function isObject(value: unknown): value is JsonObject {
  return value instanceof Map;
}

/** Parse a text. `spans`, if given, is filled with where the value of each member of the outermost object stands. */
export function parse(text: string, spans?: Map<string, readonly [number, number]>): Json {
  const parser = new Parser(text, spans);
  return parser.document();
}

class Parser {
  private at = 0;

  constructor(
    private readonly text: string,
    private readonly spans: Map<string, readonly [number, number]> | undefined,
  ) {}

  document(): Json {
    this.skip();
    const value = this.value(1);
    this.skip();
    if (this.at < this.text.length) throw new JsonError(`something follows the end, at character ${this.at}`);
    return value;
  }

  private skip(): void {
    for (;;) {
      const code = this.text.charCodeAt(this.at);
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
      this.at++;
    }
  }

  private fail(): never {
    if (this.at >= this.text.length) throw new JsonError("it ends too early");
    throw new JsonError(`unexpected ${JSON.stringify(this.text[this.at])} at character ${this.at}`);
  }

  private value(depth: number): Json {
    const first = this.text[this.at];
    if (first === "{" || first === "[") {
      if (depth > DEEPEST) throw new JsonError(`it is nested more than ${DEEPEST} deep`);
      return first === "{" ? this.object(depth) : this.array(depth);
    }
    if (first === '"') return this.string();
    if (first === "t") return this.word("true", true);
    if (first === "f") return this.word("false", false);
    return first === "n" ? this.word("null", null) : this.number();
  }

  private word(word: string, value: boolean | null): boolean | null {
    if (!this.text.startsWith(word, this.at)) this.fail();
    this.at += word.length;
    return value;
  }

  private object(depth: number): JsonObject {
    const result: JsonObject = new Map();
    this.at++;
    this.skip();
    if (this.text[this.at] === "}") {
      this.at++;
      return result;
    }
    for (;;) {
      if (this.text[this.at] !== '"') this.fail();
      const key = this.string();
      if (result.has(key)) throw new JsonError(`the key ${JSON.stringify(key)} stands twice`, key);
      this.skip();
      if (this.text[this.at] !== ":") this.fail();
      this.at++;
      this.skip();
      const begin = this.at;
      result.set(key, this.value(depth + 1));
      if (depth === 1) this.spans?.set(key, [begin, this.at]);
      if (this.ends("}")) return result;
    }
  }

  private array(depth: number): Json[] {
    const result: Json[] = [];
    this.at++;
    this.skip();
    if (this.text[this.at] === "]") {
      this.at++;
      return result;
    }
    for (;;) {
      result.push(this.value(depth + 1));
      if (this.ends("]")) return result;
    }
  }

  private ends(bracket: string): boolean {
    this.skip();
    const next = this.text[this.at];
    if (next !== bracket && next !== ",") this.fail();
    this.at++;
    if (next === bracket) return true;
    this.skip();
    return false;
  }

  private string(): string {
    this.at++;
    let result = "";
    for (;;) {
      PLAIN.lastIndex = this.at;
      const plain = (PLAIN.exec(this.text) as RegExpExecArray)[0];
      result += plain;
      this.at += plain.length;
      const next = this.text[this.at];
      if (next === '"') break;
      if (next !== "\\") this.fail();
      result += this.escape();
    }
    this.at++;
    if (!isWellFormed(result)) throw new JsonError("a string has half of a surrogate pair");
    return result;
  }

  private escape(): string {
    const letter = this.text[this.at + 1] ?? "";
    if (letter === "u") {
      const digits = this.text.slice(this.at + 2, this.at + 6);
      if (!/^[0-9a-fA-F]{4}$/.test(digits)) this.fail();
      this.at += 6;
      return String.fromCharCode(parseInt(digits, 16));
    }
    const char = Object.hasOwn(ESCAPES, letter) ? ESCAPES[letter] : undefined;
    if (char === undefined) this.fail();
    this.at += 2;
    return char;
  }

  private number(): number | Real {
    NUMBER.lastIndex = this.at;
    const match = NUMBER.exec(this.text);
    if (match === null) this.fail();
    const digits = match[0];
    this.at += digits.length;
    const value = Number(digits) + 0; // −0 becomes +0, which is how both are written
    if (!Number.isFinite(value)) throw new JsonError("a number is beyond binary64");
    if (match[1] !== undefined || match[2] !== undefined) return Number.isSafeInteger(value) ? new Real(value) : value;
    if (!Number.isSafeInteger(value) && String(value) !== digits) {
      throw new JsonError(`the integer ${digits.slice(0, 40)} is beyond 2^53 − 1`);
    }
    return value;
  }
}

/** Return whether a text has no half of a surrogate pair. */
export function isWellFormed(text: string): boolean {
  return (
    !/[\ud800-\udfff]/.test(text) ||
    !/(?:[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff])/.test(text)
  );
}

/** Return the canonical form of a value (RFC 8785). */
export function canonical(value: Json): string {
  if (value instanceof Map) {
    const members = [...value.keys()]
      .sort(byCodeUnits)
      .map((key) => `${JSON.stringify(key)}:${canonical(value.get(key) as Json)}`);
    return `{${members.join(",")}}`;
  }
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  return JSON.stringify(value instanceof Real ? value.value : value);
}

function byCodeUnits(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Return how deep arrays and objects are nested in a value. */
export function depth(value: Json): number {
  if (!(value instanceof Map) && !Array.isArray(value)) return 0;
  let deepest = 0;
  for (const item of value.values()) deepest = Math.max(deepest, depth(item));
  return deepest + 1;
}

/** Return whether two values are equal: objects by their members, numbers as binary64. */
export function equal(a: Json | undefined, b: Json | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && canonical(a) === canonical(b));
}

/** Return a value of plain objects and numbers, as JSON.parse makes them. */
export function plain(value: Json): unknown {
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, plain(item)]));
  if (Array.isArray(value)) return value.map(plain);
  return value instanceof Real ? value.value : value;
}

/** Return a value by section 3.2 of plain objects and arrays; members that are undefined are left out. */
export function fromPlain(value: unknown): Json {
  if (value === null || typeof value === "string" || typeof value === "boolean") return value;
  if (typeof value === "number" && Number.isFinite(value)) return value + 0;
  if (value instanceof Real || value instanceof Map) return value as Json;
  if (Array.isArray(value)) return value.map(fromPlain);
  if (typeof value === "object") {
    const members = Object.entries(value as object).filter(([, item]) => item !== undefined);
    return new Map(members.map(([key, item]) => [key, fromPlain(item)]));
  }
  throw new JsonError(`${String(value)} is not JSON`);
}
