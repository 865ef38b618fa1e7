// The state that is shown, what it was before, and the address that says it.
import { initial, LinkError, LONGEST, parse, print } from "./state.js";

const DEEPEST = 300;

/** Keeps the state; tells of each change whether the hand still moves. */
export class History extends EventTarget {
  #past = [];
  #future = [];
  #before = null; // the state before a move that has not ended
  state = initial();

  get canUndo() {
    return this.#past.length > 0 || this.#before !== null;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /** Change the state; while the hand moves (`settled` false) all of it is one step that undo takes back. */
  set(next, settled = true) {
    const former = this.state;
    this.#before ??= former;
    this.state = next;
    if (settled) {
      if (print(this.#before) !== print(next)) {
        this.#past.push(this.#before);
        if (this.#past.length > DEEPEST) this.#past.shift();
        this.#future = [];
      }
      this.#before = null;
      this.#address();
    }
    this.#tell(settled, former);
  }

  undo() {
    if (this.#before) this.set(this.state, true);
    if (this.#past.length) this.#step(this.#past, this.#future);
  }

  redo() {
    if (this.#future.length) this.#step(this.#future, this.#past);
  }

  #step(from, to) {
    const former = this.state;
    this.#before = null;
    to.push(former);
    this.state = from.pop();
    this.#address();
    this.#tell(true, former);
  }

  #tell(settled, former) {
    this.dispatchEvent(new CustomEvent("change", { detail: { settled, former } }));
  }

  /** Let the address say the state, though a change of it has not ended. */
  note() {
    this.#address();
  }

  #address() {
    const text = print(this.state);
    const fits = text.length <= LONGEST;
    if (fits) history.replaceState(null, "", `#${text}`);
    this.dispatchEvent(new CustomEvent("address", { detail: fits }));
  }

  /**
   * Take over what the address says; the first time there is nothing to undo.
   *
   * @returns {string} what is wrong with it, as a sentence; empty if nothing is.
   */
  read(fragment, first = false) {
    try {
      const { state, ignored } = parse(fragment);
      if (first) {
        this.state = state;
        this.#tell(true, state);
      } else if (print(state) !== print(this.state)) this.set(state);
      return ignored.length ? `Parts of this link are unknown here and were ignored: ${ignored.join(", ")}.` : "";
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      if (!first) this.#address(); // it says what is shown, or the mix would be gone when the page is loaded again
      return `${error.message} It was not opened.`;
    }
  }
}
