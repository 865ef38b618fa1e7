// Pictures of numbers: where a δ acts, and how two lie to each other. Each is an SVG with words for it, and a table.
import { counted, few, h, percent, svg } from "./dom.js";

const WIDEST = 640;
const HIGH = 96; // of the bars of layers
const BAND = 56; // of their ranges

/** Return how wide a picture is drawn: its letters stay as large as others on a phone, too. */
function width() {
  return Math.max(260, Math.min(WIDEST, innerWidth - 80));
}

/** Return a label that cannot be mistaken for another component's. */
export function labelOf({ label, component }, several) {
  return several ? `${component} ${label}` : label;
}

function severalIn(blocks) {
  return new Set(blocks.map(({ component }) => component)).size > 1;
}

/** Return a picture of where a δ acts: energy of each layer in the order of the forward pass, and its range; and tables. */
export function profileChart(profile) {
  if (!profile.layers.length || !profile.energy) return h("p", {}, "This δ is 0 everywhere: it changes nothing.");
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${width()} ${HIGH + BAND + 34}`, class: "chart", role: "img", "aria-label": profileWords(profile) },
    ...bars(profile),
    ...ranges(profile),
    ...blockNames(profile),
  );
  const sigma = profile.range === "sigma";
  const legend = h(
    "p",
    { className: "legend" },
    h("span", {}, h("span", { className: "key energy" }), "energy of each layer (Σδ², its root is drawn)"),
    h(
      "span",
      {},
      h("span", { className: "key range" }),
      sigma
        ? "range of σ′/σ, how many times its singular values become (line: 1, unchanged)"
        : "range of its δ (line: 0)",
    ),
  );
  return h("div", { className: "chart-box" }, picture, legend, blockTable(profile), layerTable(profile));
}

/** Return in words what a picture of a profile shows. */
export function profileWords(profile) {
  const several = severalIn(profile.blocks);
  const largest = [...profile.blocks]
    .sort((a, b) => b.energy - a.energy)
    .slice(0, 3)
    .filter(({ energy }) => energy > 0);
  const blocks = largest.map((each) => `${labelOf(each, several)} ${percent(each.energy / profile.energy)}`).join(", ");
  const [low, high] = spread(profile);
  const range =
    low === null
      ? ""
      : profile.range === "sigma"
        ? ` Singular values become between ${few(low)} and ${few(high)} times what they were.`
        : ` δ lies between ${few(low, 3)} and ${few(high, 3)}.`;
  return `Where ${profile.name} acts, over ${counted(profile.layers.length, "layer")}: most of its energy in ${blocks}.${range}`;
}

function spread({ layers }) {
  const known = layers.filter((row) => row[3] !== null);
  if (!known.length) return [null, null];
  return [Math.min(...known.map((row) => row[3])), Math.max(...known.map((row) => row[4]))];
}

/** One path for each block: hundreds of layers are a few elements. */
function bars({ layers, blocks }) {
  const step = width() / layers.length;
  const gap = step > 3 ? 0.5 : 0;
  const largest = Math.sqrt(Math.max(...layers.map((row) => row[2]))) || 1;
  return blocks.map((block, index) => {
    let path = "";
    layers.forEach(([, owner, energy], place) => {
      if (owner !== index || !(energy > 0)) return;
      const top = HIGH * (1 - Math.sqrt(energy) / largest);
      path += `M${(place * step).toFixed(2)} ${HIGH}V${top.toFixed(2)}h${(step - gap).toFixed(2)}V${HIGH}z`;
    });
    return svg("path", { d: path, class: index % 2 ? "bar odd" : "bar" }, svg("title", {}, block.label));
  });
}

function ranges({ layers, range }) {
  const step = width() / layers.length;
  const middle = range === "sigma" ? 1 : 0;
  const known = layers.map((row, place) => [place, row[3], row[4]]).filter(([, low]) => low !== null);
  const far = known
    .map(([, low, high]) => Math.max(Math.abs(low - middle), Math.abs(high - middle)))
    .sort((a, b) => a - b);
  const most = far.at(-1) || 1e-12;
  const reach = Math.min(most, 1.25 * far[Math.floor(0.8 * (far.length - 1))] || most); // a few tiny σ would hide all others
  const top = HIGH + 8;
  const y = (value) => top + (BAND / 2) * (1 - Math.max(-1, Math.min(1, (value - middle) / reach)));
  const cut = most > reach ? "beyond " : "";
  const path = known
    .map(([place, low, high]) => {
      const thin = Math.max(y(low) - y(high), 0.8);
      return `M${(place * step).toFixed(2)} ${y(high).toFixed(2)}h${(step * 0.9).toFixed(2)}v${thin.toFixed(2)}h${(-step * 0.9).toFixed(2)}z`;
    })
    .join("");
  return [
    svg("line", { x1: 0, x2: width(), y1: y(middle), y2: y(middle), class: "axis" }),
    svg("path", { d: path, class: "span" }),
    svg("text", { x: width(), y: top + 9, class: "tick end" }, cut + few(middle + reach)),
    svg(
      "text",
      { x: width(), y: top + BAND - 1, class: "tick end" },
      range === "sigma" && reach >= 1 ? "0" : few(middle - reach),
    ),
  ];
}

/** Names of blocks in two rows; one that finds no room is in the tables, and in the title of its bars. */
function blockNames({ layers, blocks }) {
  const step = width() / layers.length;
  const found = [];
  const free = [-1, -1];
  blocks.forEach(({ label }, index) => {
    const from = layers.findIndex((row) => row[1] === index);
    if (from < 0) return;
    const x = from * step;
    found.push(svg("line", { x1: x, x2: x, y1: 0, y2: HIGH + BAND + 14, class: "edge" }));
    const row = free.findIndex((end) => x >= end);
    const end = x + 6 * label.length + 10;
    if (row < 0 || end > width() + 10) return;
    free[row] = end;
    found.push(svg("text", { x: x + 2, y: HIGH + BAND + 18 + 11 * row, class: "tick" }, label));
  });
  return found;
}

function table(caption, heads, rows) {
  const head = h(
    "tr",
    {},
    heads.map((text) => h("th", { scope: "col" }, text)),
  );
  const body = rows.map(([first, ...rest]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, first),
      rest.map((text) => h("td", {}, text)),
    ),
  );
  return h("table", {}, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, body));
}

/** Return a part of a page that is built when it is opened first. */
export function unfolded(title, build) {
  const place = h("div", { className: "table-box", tabIndex: 0, role: "group", "aria-label": title });
  const details = h("details", {}, h("summary", {}, title), place);
  details.addEventListener("toggle", () => details.open && !place.firstChild && place.append(build()));
  return details;
}

function blockTable(profile) {
  const { blocks, energy, range } = profile;
  const several = severalIn(blocks);
  const heads = [
    "block",
    "layers",
    "share of energy",
    ...(range === "sigma" ? ["least σ′/σ", "largest σ′/σ"] : ["least δ", "largest δ"]),
  ];
  return unfolded("Blocks as a table", () =>
    table(
      `Blocks of ${profile.name}`,
      heads,
      blocks.map((each) => [
        labelOf(each, several),
        String(each.parameters),
        percent(each.energy / energy),
        few(each.low, 3),
        few(each.high, 3),
      ]),
    ),
  );
}

function layerTable(profile) {
  const { layers, energy, range } = profile;
  const heads = [
    "layer",
    "share of energy",
    ...(range === "sigma" ? ["least σ′/σ", "largest σ′/σ"] : ["least δ", "largest δ"]),
  ];
  return unfolded(`All ${counted(layers.length, "layer")} as a table`, () =>
    table(
      `Layers of ${profile.name}`,
      heads,
      layers.map(([name, , own, low, high]) => [name, percent(own / energy), few(low, 3), few(high, 3)]),
    ),
  );
}

/** Return how two δ lie to each other, in words. */
export function togetherWords({ cosine }) {
  if (cosine === null) return "no layer in common: they do not meet";
  if (cosine > 0.3) return "they pull the same way: together they are stronger than each alone";
  if (cosine < -0.3) return "they pull against each other: each takes back some of the other";
  if (Math.abs(cosine) > 0.1) return cosine > 0 ? "they agree a little" : "they disagree a little";
  return "nearly independent: they hardly touch what the other changes";
}

/** Return what comes of a figure of interference where the weights have these signs. */
export function signed(found, a, b) {
  if (a * b >= 0 || found.cosine === null) return found;
  const turned = ({ cosine, conflicts, ...rest }) => ({
    ...rest,
    cosine: cosine === null ? null : -cosine,
    conflicts: conflicts === null ? null : 1 - conflicts,
  });
  return { ...turned(found), blocks: found.blocks.map(turned) };
}

/** Return a picture of the interference of two δ, block by block, with its table. */
export function interferenceChart(found) {
  if (found.cosine === null) return h("p", {}, `${found.a} and ${found.b} shift no layer in common.`);
  const several = severalIn(found.blocks);
  const rows = found.blocks.filter(({ cosine }) => cosine !== null);
  const line = 17;
  const left = 92;
  const middle = left + (width() - left) / 2;
  const half = (width() - left) / 2 - 30;
  const shown = rows.slice(0, 40);
  const marks = shown.flatMap((each, index) => {
    const y = index * line;
    const x = middle + half * Math.min(0, each.cosine);
    const beyond = each.cosine < 0 ? x - 4 : x + half * each.cosine + 4;
    return [
      svg("text", { x: left - 8, y: y + 12, class: "tick end" }, labelOf(each, several)),
      svg("rect", {
        x, y: y + 3, width: Math.max(1, half * Math.abs(each.cosine)), height: line - 6, class: each.cosine < 0 ? "against" : "along",
      }), // prettier-ignore
      svg("text", { x: beyond, y: y + 12, class: each.cosine < 0 ? "tick end" : "tick" }, few(each.cosine)),
    ];
  });
  const height = shown.length * line;
  const most = rows.reduce((x, y) => (Math.abs(y.cosine) > Math.abs(x.cosine) ? y : x), rows[0]);
  const said = `Interference of ${found.a} and ${found.b}: cosine ${few(found.cosine)}, ${togetherWords(found)}; strongest in ${labelOf(most, several)}, ${few(most.cosine)}.`;
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${width()} ${height}`, class: "chart", role: "img", "aria-label": said },
    svg("line", { x1: middle, x2: middle, y1: 0, y2: height, class: "axis" }),
    ...marks,
  );
  const heads = ["block", "cosine", "pull apart", "numbers"];
  const list = found.blocks.map((each) => [
    labelOf(each, several), few(each.cosine), percent(each.conflicts), each.numbers.toLocaleString("en"),
  ]); // prettier-ignore
  const rest = unfolded("As a table", () => table(`Blocks that ${found.a} and ${found.b} both shift`, heads, list));
  return h("div", { className: "chart-box" }, picture, rest);
}
