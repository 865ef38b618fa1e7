// The card of one δ, opened: its pictures, where it acts, and what it would do in the mix, shown before it is added.
import { at, bytes, clippedWords, counted, h, say } from "./dom.js";
import { interferenceChart, profileChart, signed } from "./chart.js";
import { pairRow } from "./pairs.js";
import { captionOf } from "./shelf.js";
import { MOST, sent, term, withMix } from "./state.js";

/** Shows cards in a dialog. */
export class Look {
  #server;
  #history;
  #facts;
  #shelf;
  #opener;
  #added;
  #dialog = at("look");
  #showing = "";

  constructor({ server, history, facts, shelf, opener, added }) {
    this.#server = server;
    this.#history = history;
    this.#facts = facts;
    this.#shelf = shelf;
    this.#opener = opener;
    this.#added = added;
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#dialog.addEventListener("close", () => {
      this.#showing = "";
      at("look-body").replaceChildren();
    });
    at("look-close").addEventListener("click", () => this.#dialog.close());
  }

  /** Open the card of a δ. */
  open(name) {
    const delta = this.#facts.delta(name);
    if (!delta) {
      say(`${name} is not in the store here.`, "warn");
      return;
    }
    this.#showing = name;
    at("look-title").textContent = name;
    at("look-body").replaceChildren(
      ...this.#about(delta),
      this.#section("Where it acts", () => this.#facts.profile(name).then(profileChart)),
      ...this.#inMix(delta),
    );
    at("look-actions").replaceChildren(...this.#actions(delta));
    this.#dialog.showModal();
    at("look-body").scrollTop = 0;
    const first = at("look-actions").querySelector("button:not([disabled])") ?? at("look-close");
    first.focus();
  }

  #about(delta) {
    const pictures = h("div", { className: "pictures" });
    for (let number = 0; number < delta.pictures; number++) {
      const caption = captionOf(delta, number);
      const image = h("img", { alt: caption, hidden: true });
      pictures.append(h("figure", {}, image, h("figcaption", {}, caption)));
      this.#shelf.picture(delta, number).then((src) => src && Object.assign(image, { src, hidden: false }));
    }
    const rows = [
      ["title", delta.title !== delta.name && delta.title],
      ["prompt it was trained on", delta.prompt],
      [
        "shifts",
        delta.parameters &&
          `${counted(delta.parameters, "layer")} of ${delta.components.join(", ")}, ${counted(delta.numbers, "number")}`,
      ],
      ["made by", delta.made && `svdiff ${delta.made}`],
      [
        "file",
        `${bytes(delta.bytes)}, changed ${new Date(1000 * delta.changed).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" })}`,
      ],
    ].filter(([, text]) => text);
    return [
      delta.fault && h("p", { className: "notice refused" }, `It cannot be used here: ${delta.fault}`),
      delta.pictures > 0 && pictures,
      h(
        "dl",
        { className: "facts" },
        rows.flatMap(([key, text]) => [h("dt", {}, key), h("dd", {}, text)]),
      ),
    ].filter(Boolean);
  }

  /** Return a part whose content comes later. */
  #section(title, load) {
    const place = h("div", {}, "…");
    load()
      .catch((error) => h("p", { className: "fault" }, error.message))
      .then((content) => place.replaceChildren(content));
    return h("section", {}, h("h3", {}, title), place);
  }

  #inMix(delta) {
    const state = this.#history.state;
    const { terms } = state[state.edit];
    const others = terms.filter(({ name }) => name !== delta.name && this.#facts.delta(name)?.fault === "");
    if (delta.fault || !others.length) return [];
    const own = terms.find(({ name }) => name === delta.name)?.weight ?? 1;
    const with_ = others.map((other) => this.#section(`With ${other.name}`, () => this.#pair(delta.name, own, other)));
    return [
      h("h3", { className: "over" }, `What it would do in mix ${state.edit.toUpperCase()}`),
      this.#checked(delta),
      ...with_,
    ];
  }

  async #pair(name, weight, other) {
    const found = signed(await this.#facts.interference(name, other.name), weight, other.weight);
    const list = h("ul", { className: "pairs" }, pairRow(`${name} × ${other.name}`, found));
    return h("div", {}, list, interferenceChart(found));
  }

  /** Say before the add whether the sum would be too large. */
  #checked(delta) {
    const place = h("p", { className: "notice", hidden: true });
    const state = this.#history.state;
    const { terms } = state[state.edit];
    const mix = terms.some(({ name }) => name === delta.name) ? terms : [...terms, term(delta.name)];
    if (mix.length > MOST.terms) return place; // it cannot be added
    this.#server
      .post("board/check", { mixes: [sent({ terms: mix })] })
      .then((answer) => answer.json())
      .then(({ checks: [check] }) => {
        place.textContent = check.message || clippedWords([check]);
        place.hidden = !place.textContent;
        place.classList.add(check.state);
      })
      .catch(() => {}); // the mix itself says it when it is painted
    return place;
  }

  #actions(delta) {
    const state = this.#history.state;
    const { edit: side } = state;
    const { terms } = state[side];
    const used = terms.some(({ name }) => name === delta.name);
    const full = terms.length >= MOST.terms;
    const done = (next) => {
      this.#dialog.close();
      this.#history.set(next);
    };
    const add = h("button", {
      type: "button", className: "primary", disabled: Boolean(delta.fault) || full,
      onclick: () => {
        const now = this.#history.state;
        const prompt = now.prompt || delta.prompt || "";
        done({ ...withMix(now, side, [...now[side].terms, term(delta.name)]), prompt });
        this.#added(delta.name);
      },
    }, full ? `Mix ${side.toUpperCase()} is full: ${MOST.terms} deltas` : `Add to mix ${side.toUpperCase()}`); // prettier-ignore
    const remove = h("button", {
      type: "button",
      onclick: () => {
        const now = this.#history.state; // the address may have changed it since the card was opened
        done(withMix(now, side, now[side].terms.filter(({ name }) => name !== delta.name)));
      },
    }, `Take out of mix ${side.toUpperCase()}`); // prettier-ignore
    const prompt = h("button", {
      type: "button",
      onclick: () => done({ ...this.#history.state, prompt: delta.prompt }),
    }, "Use its prompt"); // prettier-ignore
    const sliders = h("button", {
      type: "button",
      onclick: () => {
        this.#dialog.close();
        this.#opener.lineage(delta.name);
      },
    }, "Open its sliders"); // prettier-ignore
    return [
      used ? remove : add,
      delta.opens && sliders,
      delta.prompt && delta.prompt !== state.prompt && prompt,
    ].filter(Boolean);
  }
}
