// The pictures of the stage: one mix, A beside B, or the strip between them; each shows the newest that was painted.
import { counted, h, few } from "./dom.js";
import { words } from "./state.js";

/** Shows the frames of a job in an element. */
export class Frames {
  #place;
  #shown = new Map(); // by frame id: element and what it shows
  #layout = "";

  constructor(place) {
    this.#place = place;
  }

  /** Lay out the frames of a job; pictures that stay keep what they show. */
  lay(job, state) {
    const layout = JSON.stringify([job.view, job.frames.map(({ id }) => id)]);
    if (layout !== this.#layout) this.#build(job, layout);
    for (const frame of job.frames) {
      const own = this.#shown.get(frame.id);
      own.wanted = frame.key;
      own.figure.classList.toggle("behind", own.key !== frame.key);
      own.figure.dataset.side = frame.side;
    }
    this.#caption(job, state);
  }

  #build(job, layout) {
    this.#layout = layout;
    this.#shown.clear();
    this.#place.className = `frames ${job.view}`;
    this.#place.dataset.count = String(job.frames.length);
    const figures = job.frames.map((frame) => {
      const image = h("img", { alt: "", hidden: true, draggable: false });
      const note = h("span", { className: "note" });
      const caption = h("figcaption");
      const box = h("div", { className: "picture" }, image, note);
      const figure = h("figure", { className: "frame behind" }, box, caption);
      this.#shown.set(frame.id, { figure, image, note, caption, move: -1, stage: -1 });
      return figure;
    });
    this.#place.replaceChildren(...figures);
  }

  #caption(job, state) {
    const several = state.seeds.length > 1;
    for (const frame of job.frames) {
      const { caption } = this.#shown.get(frame.id);
      const seed = `seed ${frame.seed}`;
      let text = several || job.view === "one" ? seed : "";
      if (job.view === "ab")
        text = `${frame.side.toUpperCase()}: ${words(state[frame.side])}${several ? `, ${seed}` : ""}`;
      if (job.view === "strip") {
        const mixed = frame.side ? frame.side.toUpperCase() : `${few(100 * frame.share[1], 0)} % B`;
        text = several ? `${mixed}, ${seed}` : mixed;
      }
      if (caption.textContent !== text) caption.textContent = text;
    }
  }

  /** Show a picture, if it is not older than what is shown. Tells the document `board:shown` once it can be seen. */
  async show({ move, frame, stage, last, url, steps, seconds }) {
    const own = this.#shown.get(frame.id);
    if (!own || move < own.move || (move === own.move && stage < own.stage)) return;
    Object.assign(own, { move, stage, key: frame.key });
    own.image.src = url;
    own.image.alt = `${frame.alt}, ${counted(steps, "step")}`;
    own.image.hidden = false;
    own.figure.dataset.move = String(move);
    own.figure.dataset.steps = String(steps);
    own.figure.classList.toggle("behind", own.wanted !== frame.key);
    own.figure.classList.toggle("final", last);
    own.note.textContent = last ? "" : counted(steps, "step");
    own.note.hidden = last;
    try {
      await own.image.decode();
    } catch {
      return; // a newer one has taken its place
    }
    own.image.classList.toggle("small", own.image.naturalWidth < 200);
    document.dispatchEvent(new CustomEvent("board:shown", { detail: { move, id: frame.id, stage, steps, seconds } }));
  }
}
