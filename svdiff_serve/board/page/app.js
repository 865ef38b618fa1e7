// The board: joins server, state, shelf, mixer and pictures.
import { Refused, Server } from "./api.js";
import { at, clippedWords, counted, say } from "./dom.js";
import { Facts } from "./facts.js";
import { Frames } from "./frames.js";
import { History } from "./history.js";
import { jobOf } from "./job.js";
import { Look } from "./look.js";
import { Mixer } from "./mixer.js";
import { Painter } from "./painter.js";
import { Pairs } from "./pairs.js";
import { Settings } from "./settings.js";
import { Shelf } from "./shelf.js";
import { words } from "./state.js";
import { Ways } from "./ways.js";

const PAUSE = 80; // milliseconds without a move after which the hand rests
const EVERY = 4000; // milliseconds between looks at the store

const server = new Server();
const past = new History();
const facts = new Facts(server);
const painter = new Painter(server);
const frames = new Frames(at("frames"));
const shelf = new Shelf(server);
const mixer = new Mixer(past, facts, shelf);
const pairs = new Pairs(facts);
let base = null;
let settings = null;
let ways = null;
let look = null;
let resting = 0;
let given = false; // whether a key was given when its dialog closed

// -- the key, and a server that is not there

server.addEventListener("key", ({ detail: tried }) => {
  const dialog = at("key");
  at("key-wrong").hidden = !tried;
  if (!dialog.open) dialog.showModal();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const fine = server.take(at("key-text").value);
  at("key-text").value = "";
  at("key-wrong").hidden = fine;
  if (!fine) return;
  given = true;
  at("key").close();
  start();
});
at("key").addEventListener("close", () => {
  if (!given) at("key").showModal(); // nothing works without it
  given = false;
});
server.addEventListener("gone", () => {
  at("gone").hidden = false;
  document.body.classList.add("away");
});
server.addEventListener("back", async () => {
  await start(); // which paints what could not be painted
  if (server.gone) return; // again, while it was asked
  at("gone").hidden = true;
  document.body.classList.remove("away");
  say("The server is back.");
});

/** Learn what is served, and show it; done again when the server is another one. */
async function start() {
  try {
    const found = await server.get("board/base");
    if (found.started !== base?.started) facts.forget();
    base = found;
    await facts.refresh();
  } catch (error) {
    if (error instanceof Refused && error.status !== 401) problem(error.message);
    return;
  }
  at("base").textContent = base.name;
  shelf.set(facts.all());
  if (settings) for (const each of [settings, ways]) each.use(base);
  else begin();
  render(true);
  document.body.dataset.ready = "true";
}

function begin() {
  settings = new Settings(past, base);
  ways = new Ways(server, past, base);
  look = new Look({ server, history: past, facts, shelf, opener: ways, added: (name) => mixer.focus(name) });
  for (const each of [shelf, mixer]) each.addEventListener("open", ({ detail }) => look.open(detail));
  past.addEventListener("change", ({ detail }) => render(detail.settled));
  past.addEventListener("address", ({ detail: fits }) => (at("long").hidden = fits));
  const read = (first) => {
    const wrong = past.read(location.hash.slice(1), first);
    if (wrong) say(wrong, "warn");
  };
  addEventListener("hashchange", () => read(false));
  read(true);
  setInterval(watch, EVERY);
  document.addEventListener("visibilitychange", watch); // whoever comes back to the page does not wait
}

async function watch() {
  if (document.hidden || server.gone) return;
  try {
    if (!(await facts.refresh())) return;
  } catch {
    return; // whoever is gone is said to be gone by now
  }
  if (facts.started !== base.started) {
    await start(); // another server is there, and nobody saw the one before go
    return;
  }
  shelf.set(facts.all());
  render(true);
}

// -- what is shown

function render(settled) {
  if (!base) return;
  const { state } = past;
  paint(settled); // first: the server works while the page is drawn
  settings.render(state);
  mixer.render(state);
  ways.render(state);
  shelf.mark(new Set(state[state.edit].terms.map(({ name }) => name)));
  at("undo").disabled = !past.canUndo;
  at("redo").disabled = !past.canRedo;
  clearTimeout(resting);
  if (settled) pairs.render(state);
  else resting = setTimeout(() => paint(true), PAUSE);
}

function paint(settled) {
  const job = jobOf(past.state, base, (name) => facts.digest(name));
  frames.lay(job, past.state);
  painter.want(job, settled);
}

painter.addEventListener("begun", () => {
  at("status").textContent = "painting …";
  at("problem").hidden = true;
});
painter.addEventListener("picture", ({ detail }) => {
  frames.show(detail);
  at("status").textContent = `${counted(detail.steps, "step")}${detail.last ? "" : ", more to come …"}`;
});
painter.addEventListener("check", ({ detail }) => checks(detail));
painter.addEventListener("problem", ({ detail }) => problem(detail.message));
painter.addEventListener("rest", () => {
  at("problem").hidden = true;
  at("done").textContent = `Painted: ${words(past.state[past.state.edit])}`;
});

function checks({ checks: found, of: job }) {
  const sides = job.mixes.length === 1 ? [""] : ["A: ", "B: "];
  const texts = found
    .map(({ state, message }, index) => (state === "ok" ? "" : sides[index] + message))
    .filter(Boolean);
  const refused = found.some(({ state }) => state === "refused");
  const clipped = clippedWords(found);
  at("clipped").textContent = clipped && ` · ${clipped}`;
  at("check").hidden = !texts.length;
  at("check").className = `notice ${refused ? "refused" : "warn"}`;
  at("check").textContent = texts.join(" ");
}

function problem(message) {
  at("problem").hidden = false;
  at("problem").textContent = message;
  at("status").textContent = "not painted";
}

// -- undo, and the two sides

at("undo").addEventListener("click", () => past.undo());
at("redo").addEventListener("click", () => past.redo());
addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("textarea, input:not([type=range], [type=radio], [type=checkbox])")) return; // its own undo
  const key = event.key.toLowerCase();
  if (key !== "z" && key !== "y") return;
  event.preventDefault();
  if (key === "y" || event.shiftKey) past.redo();
  else past.undo();
});
at("copy-across").addEventListener("click", () => {
  const { state } = past;
  const other = state.edit === "a" ? "b" : "a";
  past.set({ ...state, [other]: state[state.edit] });
  say(`Mix ${other.toUpperCase()} is now as mix ${state.edit.toUpperCase()}.`);
});
at("swap").addEventListener("click", () => past.set({ ...past.state, a: past.state.b, b: past.state.a }));
at("clear").addEventListener("click", () => past.set({ ...past.state, [past.state.edit]: { terms: [] } }));

// On a phone the pictures stay at the top: what gets the focus is scrolled to below them.
const pictures = document.querySelector(".look-at");
new ResizeObserver(() => {
  const stays = getComputedStyle(pictures).position === "sticky";
  document.documentElement.style.scrollPaddingTop = stays ? `${pictures.offsetHeight + 8}px` : "";
}).observe(pictures);

for (const link of document.querySelectorAll(".skip")) {
  link.addEventListener("click", (event) => {
    event.preventDefault(); // the fragment of the address is the mix
    at(link.hash.slice(1)).focus();
  });
}

start();
