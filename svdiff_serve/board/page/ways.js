// Ways out of the board, and the way back: saved as δ, recipe or LoRA, copied as command or Python, opened again.
import { Gone, Refused } from "./api.js";
import { at, counted, download, h, percent, say } from "./dom.js";
import { sent, withMix, words } from "./state.js";

const LORA = ["kohya", "comfyui"];
const RANKS = 4096;
const SAID = { command: "the command", python: "the lines of Python" };

/** Saves, copies and opens mixes. */
export class Ways {
  #server;
  #history;
  #limits;

  constructor(server, history, base) {
    this.#server = server;
    this.#history = history;
    this.use(base);
    for (const button of document.querySelectorAll("[data-form]"))
      button.addEventListener("click", () => this.#out(button.dataset.form, button));
    at("copy-link").addEventListener("click", () => this.#copy(location.href, "the link to this board"));
    at("file").addEventListener("change", () => {
      const [file] = at("file").files;
      at("file").value = "";
      if (file) this.#opened(file);
    });
    const files = (event) => event.dataTransfer.types.includes("Files");
    addEventListener("dragover", (event) => files(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      const [file] = event.dataTransfer.files;
      if (file) this.#opened(file);
    });
  }

  /** Take over what a server says of its base: it may be another one than before. */
  use(base) {
    this.#limits = base.limits;
    for (const form of LORA) document.querySelector(`[data-form=${form}]`).hidden = !base.lora.includes(form);
  }

  /** Show which ways are open. */
  render(state) {
    const empty = !state[state.edit].terms.length;
    for (const button of document.querySelectorAll("[data-form]")) button.disabled = empty;
    at("ways-mix").textContent = `Mix ${state.edit.toUpperCase()}: ${words(state[state.edit])}`;
  }

  async #out(form, button) {
    const state = this.#history.state;
    const lora = LORA.includes(form);
    const rank = at("rank").valueAsNumber;
    const fine = Number.isInteger(rank) && rank >= 1 && rank <= RANKS;
    at("rank").setAttribute("aria-invalid", String(lora && !fine));
    if (lora && !fine) {
      say(`The rank of a LoRA is a whole number from 1 to ${RANKS}.`, "warn");
      return;
    }
    const body = {
      mix: sent(state[state.edit]),
      form,
      title: at("title").value.trim() || null,
      dtype: at("dtype").value,
    };
    if (lora) {
      body.rank = rank;
      body.leave_out = at("leave-out").checked;
    }
    button.setAttribute("aria-busy", "true");
    try {
      const answer = await this.#server.post("board/export", body);
      if (form in SAID) await this.#copy(await answer.text(), SAID[form]);
      else await this.#save(answer, body.rank);
    } catch (error) {
      failed(error);
    } finally {
      button.removeAttribute("aria-busy");
    }
  }

  async #save(answer, rank) {
    const name =
      /filename="([A-Za-z0-9._-]+)"/.exec(answer.headers.get("content-disposition") ?? "")?.[1] ?? "mix.safetensors";
    const kept = answer.headers.get("x-retained-energy");
    const left = Number(answer.headers.get("x-left-out") ?? 0);
    download(await answer.blob(), name);
    const texts = [
      `Saved as ${name}${kept === null ? "" : `: rank ${rank} keeps ${percent(Number(kept))} of the change`}.`,
    ];
    if (left)
      texts.push(`${counted(left, "layer")} that LoRA has no place for ${left === 1 ? "was" : "were"} left out.`);
    say(texts.join(" "), left ? "warn" : "");
  }

  /** Copy a text; it is shown, too, for pages that may not write into the clipboard. */
  async #copy(text, what) {
    at("copied").replaceChildren(h("code", {}, text));
    at("copied").hidden = false;
    try {
      await navigator.clipboard.writeText(text);
      say(`Copied ${what}.`);
    } catch {
      getSelection().selectAllChildren(at("copied"));
      say(`This browser does not let a page copy: ${what} is selected below, press Ctrl+C.`, "warn");
    }
  }

  /** Open the sliders of a δ of the store from its lineage. */
  lineage(name) {
    return this.#take(name, () => this.#server.get("board/lineage", { name }));
  }

  async #opened(file) {
    if (file.size > this.#limits.open) {
      say(
        `${file.name}: has ${file.size.toLocaleString("en")} bytes, ${this.#limits.open.toLocaleString("en")} is the most: put it into the folder of the server.`,
        "warn",
      );
      return;
    }
    let content;
    try {
      content = await file.arrayBuffer(); // a request whose body cannot be read ends as if the server were gone
    } catch {
      say(`${file.name}: cannot be read; choose a file, not a folder.`, "warn");
      return;
    }
    await this.#take(file.name, () => this.#server.send("board/open", content));
  }

  async #take(name, ask) {
    try {
      const found = await ask();
      if (!found.mix?.terms.length) {
        say(`${name}: ${found.message}`, "warn");
        return;
      }
      const state = this.#history.state;
      const terms = found.mix.terms.map((each) => ({ parts: [], ...each }));
      this.#history.set(withMix(state, state.edit, terms));
      say(
        found.message || `Mix ${state.edit.toUpperCase()} is what ${found.title ?? name} was made of.`,
        found.missing.length ? "warn" : "",
      );
    } catch (error) {
      failed(error, name);
    }
  }
}

function failed(error, name = "") {
  if (!(error instanceof Refused) && !(error instanceof Gone)) throw error;
  const text = error instanceof Gone ? "The server does not answer; the mix is kept." : error.message;
  say(shortened(name ? `${name}: ${text}` : text), "warn");
}

/** Return a sentence that may list hundreds of layers as one that can be read: its beginning, and its mend at the end. */
function shortened(text) {
  return text.length > 400 ? `${text.slice(0, 200)} … ${text.slice(-180)}` : text;
}
