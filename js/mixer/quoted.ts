// Texts in commands that the page shows.

/** Return a text as a shell takes it for one word. */
export function quoted(text: string): string {
  if (text.startsWith("-")) return quoted(`./${text}`); // which would be an option
  return /^[A-Za-z0-9_.,:=/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
