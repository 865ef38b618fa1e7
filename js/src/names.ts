// The grammars of names, repositories and revisions (sections 4.1 and 5.2).

/** The feature of files that have names with an index. */
export const STACKED = "stacked";

const COMPONENT = /^[A-Za-z0-9_]+$/;
const KEY = /^[ -~]+$/;
const INDEXED = /^(.*)\[([0-9]+)\]$/;
const INDEX = /^(?:0|[1-9][0-9]{0,11})$/;
const PART = /^[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?$/;
const STEP = /^[A-Za-z0-9._+@=#,%-]+$/;

/** Return whether a text can be the name of a component. */
export function isComponent(text: string): boolean {
  return COMPONENT.test(text) && text !== "svdiff";
}

/** Return the component that a parameter's name begins with, or undefined where the name breaks section 4.1. */
export function componentOf(name: string): string | undefined {
  const dot = name.indexOf(".");
  const component = name.slice(0, dot);
  const key = name.slice(dot + 1);
  if (dot < 0 || !isComponent(component) || !KEY.test(key)) return undefined;
  const indexed = INDEXED.exec(key);
  if (indexed === null) return component;
  const [, front, index] = indexed as unknown as [string, string, string];
  return front !== "" && !INDEXED.test(front) && INDEX.test(index) ? component : undefined;
}

/** Return whether a valid name is of one slice of a stack, such as an expert. */
export function isIndexed(name: string): boolean {
  return INDEXED.test(name);
}

/** Return whether a text is a repository by section 5.2. */
export function isRepository(text: string): boolean {
  const parts = text.split("/");
  return parts.length <= 2 && parts.every((part) => PART.test(part)) && !/--|\.\.|\.git$/.test(text);
}

/** Return whether a text is a revision by section 5.2. */
export function isRevision(text: string): boolean {
  const steps = text.split("/");
  if (text.length > 255 || text.startsWith("-") || text.endsWith(".") || text.includes("..")) return false;
  return steps.every((step) => STEP.test(step) && !step.startsWith(".") && !step.endsWith(".lock"));
}
