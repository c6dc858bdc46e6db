// Who is near whom: the inputs in the plane of two eigenvectors of a layer's graph, and everything about one of them.
import { row, rows, unpack } from "./data.js";
import { SEQUENTIAL, classColour, glyph, isDark, symbol } from "./colors.js";
import { Chart, Latest, LazyTable, MomentSlider, button, element, ink, notice, number, percent, plain, range, select, table, ticks, upright } from "./ui.js";

const COLOURS = { class: "class", prediction: "network's class", correct: "right or wrong" };
const KINDS = { 0: "the affinity (as in the paper)", 1: "the normalised Laplacian" };
const SHOWN = 12; // inputs in a list
const BARS = 10; // classes of an input's bars
const still = window.matchMedia("(prefers-reduced-motion: reduce)");

export class Inputs {
  constructor(model) {
    this.model = model;
    this.layer = null;
    this.kind = 0;
    this.colour = "class";
    this.highlight = -1;
    this.index = 0;
    this.controls = element("div", { class: "controls" });
    this.slider = new MomentSlider("Moment", () => this.load());
    this.trouble = element("div", {});
    this.places = new Places(this);
    // What is typed stays while what is below is drawn again.
    this.entry = element("input", { type: "number", min: 0, step: 1, value: 0, "aria-label": "Number of the input", onchange: () => { this.choose(this.entry.valueAsNumber); this.entry.value = String(this.index); } });
    this.chosen = element("div", { class: "chosen", "aria-live": "polite" });
    this.card = element("div", { class: "card chosen" }, element("h2", {}, element("label", { class: "field" }, "Input ", this.entry)), this.chosen);
    this.layers = new Path(this, "path", "Through the layers", "layer");
    this.time = new Path(this, "history", "Over time", "moment");
    this.moved = new List(this, "moved", "Moved most");
    this.wrong = new List(this, "wrong", "Confidently wrong");
    this.doubted = new List(this, "doubted", "Labels in doubt");
    this.classes = new ClassMatrix();
    this.byClass = new ByClass();
    this.node = element("div", {}, this.controls, this.slider.node, this.trouble,
      element("div", { class: "grid wide" }, this.places.node, this.card, this.layers.node, this.time.node, this.moved.node, this.wrong.node, this.doubted.node, this.byClass.node, this.classes.node));
    const failed = (error) => this.trouble.replaceChildren(...(error ? [notice("error", "This cannot be shown.", error.message)] : []));
    this.latest = new Latest(failed);
    this.latestInput = new Latest((error) => { if (error) this.chosen.replaceChildren(notice("error", "This input cannot be shown.", error.message)); });
  }

  update(what) {
    if (what === "layers" || what === "refined") return;
    const { run } = this.model;
    if (!run.layers.includes(this.layer)) this.layer = run.hidden;
    this.index = Math.min(this.index, run.size - 1);
    this.slider.set(this.model.momentsOfInputs(run));
    this.drawControls();
    this.load();
  }

  drawControls() {
    const { run } = this.model;
    this.controls.replaceChildren(
      select("Layer", run.layers.map((layer, i) => [layer, run.short[i]]), this.layer, (layer) => { this.layer = layer; this.load(); }),
      ...(run.labels ? [select("Colour", Object.entries(COLOURS), this.colour, (colour) => { this.colour = colour; this.load(); }),
        select("Highlight", [[-1, "all classes"], ...run.classes.map((name, c) => [c, name])], String(this.highlight), (c) => { this.highlight = Number(c); this.load(); })] : []),
      select("Eigenvectors of", Object.entries(KINDS), String(this.kind), (kind) => { this.kind = Number(kind); this.load(); }),
    );
  }

  load() {
    const { model, layer, kind } = this;
    const run = model.run, moment = this.slider.moment;
    if (!moment) { this.trouble.replaceChildren(notice("empty", "This report holds no inputs.")); return undefined; }
    const before = this.slider.moments[this.slider.place - 1];
    const at = (name, of, more = {}) => model.piece(name, { run: run.name, step: of.step, ...more }, of);
    const optional = (promise) => promise.catch(() => null); // a report has neighbours of some layers and moments
    this.loadInput();
    return this.latest.do(
      () => Promise.all([at("embedding", moment, { layer, normalized: kind }), at("samples", moment), optional(at("neighbours", moment, { layer })),
        before ? optional(at("neighbours", before, { layer })) : null, run.pictures ? model.piece("pictures", { run: run.name }, moment) : null,
        run.labels ? optional(model.piece("doubts", { run: run.name }, run.moments.at(-1))) : null,
        run.labels ? optional(at("classes", moment)) : null]),
      ([embedding, samples, now, earlier, pictures, doubts, classes]) => {
        this.pictures = pictures?.uri ? pictures : null;
        this.texts = pictures?.texts ?? null;
        this.samples = Object.fromEntries(Object.entries(samples).map(([key, packed]) => [key, unpack(packed)?.values ?? null]));
        const around = (piece) => piece && { nearest: unpack(piece.nearest), shares: unpack(piece.shares) };
        const [here, there] = [around(now), around(earlier)];
        this.places.show(unpack(embedding.points));
        this.moved.show(here && there ? movers(here, there) : null, here && there ? `since ${before.text}, in ${this.short(layer)}: by how much of an input's affinity went to ${here.shares ? "other classes" : "other neighbours"}` : "");
        this.wrong.show(this.confidentlyWrong(), `at ${moment.text}: inputs that the network gives a wrong class with the highest score`);
        this.doubted.show(doubts?.inputs ? doubts.inputs.map((i, k) => [i, `${this.labelOf(i)}, rather ${this.className(doubts.rather[k])}`]) : null, doubts?.inputs ? inDoubt(doubts, run) : "");
        this.byClass.show(classes?.class_modularity, run, moment);
        this.classes.show(here?.shares && this.samples.labels ? { shares: here.shares, labels: this.samples.labels, classes: run.classes, where: `${this.short(layer)}, ${moment.text}` } : null);
        this.drawCard();
      },
    );
  }

  // What is known of the one input that is chosen, in every layer and at every moment.
  loadInput() {
    const { model, index, layer } = this;
    const run = model.run, moment = this.slider.moment, last = run.moments.at(-1);
    return this.latestInput.do(
      () => Promise.all([model.piece("input", { run: run.name, step: moment.step, index }, moment), model.piece("history", { run: run.name, layer, index }, last)]),
      ([path, history]) => {
        const unpacked = (piece) => piece.unpacked ?? { nearest: lines(unpack(piece.nearest)), shares: piece.shares ? lines(unpack(piece.shares)) : null };
        const texts = new Map(run.moments.map(({ step, text }) => [step, text]));
        this.path = { ...unpacked(path), names: path.layers.map((name) => this.short(name)), keys: path.layers };
        this.layers.show(this.path, `input ${index} at ${moment.text}`);
        this.time.show({ ...unpacked(history), names: history.steps.map((step) => texts.get(step) ?? `step ${step}`) }, `input ${index} in ${this.short(layer)}`);
        this.drawCard();
      },
    );
  }

  choose(i) {
    if (!Number.isInteger(i) || i < 0 || i >= this.model.run.size) return;
    this.index = i;
    this.loadInput();
    this.places.mark();
  }

  short(layer) { const { run } = this.model; return run.short[run.layers.indexOf(layer)] ?? layer; }
  className(c) { return this.model.run.classes[c] ?? (c < 0 ? "none" : `class ${c}`); }

  labelOf(i) { return this.samples.labels ? this.className(this.samples.labels[i]) : "none"; }

  confidentlyWrong() {
    const { labels, predictions, confidence } = this.samples;
    if (!labels || !predictions || !confidence) return null;
    return range(labels.length).filter((i) => labels[i] !== predictions[i]).sort((a, b) => confidence[b] - confidence[a]).slice(0, SHOWN).map((i) => [i, share(confidence[i])]);
  }

  describe(i) {
    const { labels, predictions, confidence, indices } = this.samples;
    return [
      labels && `class: ${this.className(labels[i])}`,
      predictions && `network: ${this.className(predictions[i])}${confidence ? ` (${percent(confidence[i])})` : ""}`,
      indices && `number ${indices[i]} of its data set`,
    ].filter(Boolean);
  }

  tile(i, size = "") {
    const label = `input ${i}`;
    const colour = this.samples?.labels ? classColour(this.samples.labels[i]) : "transparent";
    if (this.texts) return element("span", { class: `tile text ${size}`, style: { borderLeftColor: colour } }, this.texts[i]);
    if (!this.pictures) return element("span", { class: `tile plain ${size}`, "aria-label": label, role: "img", style: { borderBottomColor: colour } }, `#${i}`);
    const { columns, rows: down, width, height, uri } = this.pictures;
    const at = (place, count) => (count > 1 ? `${(100 * place) / (count - 1)}%` : "0");
    return element("span", { class: `tile ${size}`, role: "img", "aria-label": `picture of ${label}`, style: {
      backgroundImage: `url("${uri}")`, backgroundSize: `${100 * columns}% ${100 * down}%`, aspectRatio: `${width} / ${height}`,
      backgroundPosition: `${at(i % columns, columns)} ${at(Math.floor(i / columns), down)}`, borderBottomColor: colour } });
  }

  // Rows of text stand below each other, pictures beside each other.
  get tiles() { return this.texts ? "tiles texts" : "tiles"; }

  pick(i, more = null) {
    const title = [`Input ${i}`, ...(this.samples ? this.describe(i) : [])].join(", ");
    const node = button("", () => this.choose(i), { class: "pick", title });
    node.append(this.tile(i), ...(more === null ? [] : [element("small", {}, more)]));
    return node;
  }

  drawCard() {
    if (!this.samples || !this.path) return;
    const i = this.index, { path } = this;
    this.entry.max = String(this.model.run.size - 1);
    if (document.activeElement !== this.entry) this.entry.value = String(i);
    const place = path.keys.indexOf(this.layer);
    const shares = place >= 0 && path.shares ? path.shares[place] : null;
    const nearest = place >= 0 ? Array.from(path.nearest[place]).filter((j) => j >= 0) : [];
    this.chosen.replaceChildren(
      element("div", { class: "top" }, this.tile(i, "big"), element("div", {}, ...this.describe(i).map((line) => element("p", {}, line)),
        element("p", { class: "meaning" }, shares && Number.isFinite(shares[0]) ? `SSC label in ${this.short(this.layer)}: ${this.className(argmax(shares))}` : ""))),
      ...(shares ? [Number.isFinite(shares[0]) ? this.bars(shares) : element("p", { class: "meaning" }, "It is isolated in this layer: no other input rebuilds it, and it rebuilds none.")] : []),
      element("h3", {}, `Nearest in ${this.short(this.layer)}, ${this.slider.moment.text}`),
      nearest.length ? element("div", { class: this.tiles }, ...nearest.map((j) => this.pick(j, this.samples.labels ? this.className(this.samples.labels[j]) : `#${j}`))) : element("p", { class: "meaning" }, place < 0 ? "This report holds no neighbours of this layer at this moment." : "None."),
    );
  }

  bars(shares) {
    const { labels, predictions } = this.samples;
    const shown = range(shares.length).sort((a, b) => shares[b] - shares[a]).slice(0, BARS).sort((a, b) => a - b);
    const mark = (c) => [labels?.[this.index] === c && "its class", predictions?.[this.index] === c && "network"].filter(Boolean).join(", ");
    return element("div", { class: "bars", role: "group", "aria-label": "Share of the input's affinity by class" }, ...shown.flatMap((c) => [
      element("span", { class: "name" }, this.className(c), mark(c) ? element("small", {}, ` ${mark(c)}`) : null),
      element("span", { class: "bar" }, element("i", { style: { width: `${100 * shares[c]}%`, background: classColour(c) } })),
      element("span", { class: "number" }, percent(shares[c]))]));
  }
}

// Who votes against which labels, and how many these are.
function inDoubt({ count, inputs, layers, moments }, run) {
  const asked = layers.map((name) => run.short[run.layers.indexOf(name)] ?? name).join(", ");
  const most = count > inputs.length ? `, of which the ${inputs.length} most in doubt are shown` : "";
  return `${count} of ${run.size} labels are outvoted by neighbours and by a linear probe of the other inputs, in ${asked} at ${moments === 1 ? "one moment" : `${moments} moments`} of the later half${most}. lightning-ssc labels writes all as CSV.`;
}

const share = (value) => `${(100 * value).toFixed(0)} %`;
const lines = (packed) => range(packed.shape[0]).map((i) => row(packed, i));
const argmax = (values) => values.reduce((best, v, i) => (v > values[best] ? i : best), 0);

// By how much the shares of every input changed (total variation), or of how many neighbours it has others.
function movers(now, before) {
  const count = now.nearest.shape[0];
  const far = (i) => {
    if (now.shares && before.shares) {
      const [a, b] = [row(now.shares, i), row(before.shares, i)];
      return a.reduce((sum, v, c) => sum + Math.abs(v - b[c]) / 2, 0);
    }
    const [a, b] = [row(now.nearest, i), row(before.nearest, i)].map((line) => Array.from(line).filter((j) => j >= 0));
    return a.length ? 1 - a.filter((j) => b.includes(j)).length / a.length : 0;
  };
  return range(count).map((i) => [i, far(i)]).filter(([, d]) => d > 0).sort((a, b) => b[1] - a[1]).slice(0, SHOWN).map(([i, d]) => [i, share(d)]);
}

// The rotation or reflection of points that brings them nearest to where they were (orthogonal Procrustes).
export function turned(points, target) {
  if (!target || target.length !== points.length) return points;
  let [a, b, c, d] = [0, 0, 0, 0];
  points.forEach(([x, y], i) => {
    const [u, v] = target[i];
    if (![x, y, u, v].every(Number.isFinite)) return;
    a += x * u; b += x * v; c += y * u; d += y * v;
  });
  const rotation = Math.hypot(a + d, b - c), reflection = Math.hypot(a - d, b + c);
  const angle = rotation >= reflection ? Math.atan2(b - c, a + d) : Math.atan2(b + c, a - d);
  const [cos, sin, sign] = [Math.cos(angle), Math.sin(angle), rotation >= reflection ? 1 : -1];
  return points.map(([x, y]) => [x * cos - sign * y * sin, x * sin + sign * y * cos]);
}

class Places {
  constructor(section) {
    this.section = section;
    this.title = element("b", {});
    this.tip = element("div", { class: "tip", hidden: true });
    this.chart = new Chart("Scatter plot of the inputs; choose single inputs by number beside it", { tall: true,
      onclick: ({ points }) => { if (points[0].curveNumber === 0) section.choose(points[0].pointIndex); },
      onhover: ({ points, event }) => { if (points[0].curveNumber === 0) this.point(points[0].pointIndex, event); },
      onleave: () => { this.tip.hidden = true; } });
    this.chart.plot.id = "embedding";
    this.legend = element("p", { class: "legend" });
    this.node = element("figure", { class: "card" }, element("figcaption", {}, this.title), this.chart.plot, this.legend,
      element("p", { class: "meaning" }, "Inputs with affinity to the same inputs lie close together; classes come apart where a layer tells them apart. Points are turned to match what was shown before, so that they move and do not jump."), this.tip);
  }

  show(points) {
    const { section } = this;
    this.points = turned(rows(points), this.points);
    this.title.textContent = `Inputs in ${section.short(section.layer)}, ${section.slider.moment.text}`;
    const run = section.model.run;
    const legend = section.colour === "correct" ? [["○ wrong", ink("warning")], ["● right", ink("soft")]]
      : run.classes.slice(0, 20).map((name, c) => [`${glyph(c)} ${name}`, classColour(c)]);
    this.legend.replaceChildren(...(run.labels ? legend.map(([text, colour]) => element("span", {}, element("span", { style: { color: colour } }, text[0]), text.slice(1))) : []));
    this.legend.hidden = !run.labels || run.classes.length > 20;
    this.draw();
  }

  mark() { if (this.points) this.draw(); }

  draw() {
    const { section } = this;
    this.chart.draw(() => {
      const { labels, predictions } = section.samples;
      const of = section.colour === "prediction" ? predictions ?? labels : labels;
      const wrong = (i) => labels && predictions && labels[i] !== predictions[i];
      const correctness = section.colour === "correct" && labels && predictions;
      const { points } = this;
      const [x, y] = [0, 1].map((k) => points.map((point) => (Number.isFinite(point[k]) ? point[k] : null)));
      const marker = {
        size: points.length > 3000 ? 4 : 7,
        color: points.map((_, i) => (correctness ? ink(wrong(i) ? "warning" : "soft") : of ? classColour(of[i]) : ink("accent"))),
        symbol: points.map((_, i) => `${correctness || !of ? "circle" : symbol(Math.max(0, of[i]))}${wrong(i) ? "-open" : ""}`),
        opacity: points.map((_, i) => (section.highlight < 0 || labels?.[i] === section.highlight ? 0.9 : 0.08)),
        line: { width: points.map((_, i) => (wrong(i) ? 1.6 : 0.4)), color: points.map((_, i) => (wrong(i) ? (correctness ? ink("warning") : of ? classColour(of[i]) : ink("accent")) : isDark() ? "#0008" : "#fff8")) },
      };
      const chosen = points[section.index] ?? [null, null];
      const span = (values) => {
        const known = values.filter((v) => v !== null);
        const [low, high] = [known.reduce((a, v) => Math.min(a, v), Infinity), known.reduce((a, v) => Math.max(a, v), -Infinity)];
        const margin = 0.06 * (high - low) || 0.05;
        return known.length ? [low - margin, high + margin] : [0, 1];
      };
      const shown = `${section.model.run.name} ${section.layer} ${section.kind}`;
      const axis = { zeroline: false, showticklabels: false, showgrid: false };
      return [[
        { type: "scatter", mode: "markers", x, y, ids: range(points.length).map(String), hoverinfo: "none", marker, cliponaxis: false },
        { type: "scatter", mode: "markers", x: [chosen[0]], y: [chosen[1]], ids: ["chosen"], hoverinfo: "skip", marker: { size: 18, symbol: "circle-open", color: ink("ink"), line: { width: 2.5 } }, cliponaxis: false },
      ], {
        uirevision: shown, margin: { l: 30, r: 8, t: 8, b: 30 }, ...(still.matches || document.hidden ? {} : { transition: { duration: 350, easing: "cubic-in-out" } }),
        xaxis: { ...axis, range: this.chart.kept("xaxis", span(x), shown), title: { text: "first eigenvector", standoff: 4 } }, yaxis: { ...axis, range: this.chart.kept("yaxis", span(y), shown), title: { text: "second eigenvector", standoff: 4 } },
      }];
    });
  }

  point(i, { clientX, clientY }) {
    const { section, tip } = this;
    tip.replaceChildren(section.tile(i, "middle"), element("div", {}, element("strong", {}, `Input ${i}`), ...section.describe(i).map((line) => element("div", {}, line))));
    tip.hidden = false;
    tip.style.left = `${Math.max(0, Math.min(clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, Math.min(clientY + 14, window.innerHeight - tip.offsetHeight - 4))}px`;
  }
}

// One input along something: the classes of its affinity as bars on one another, and its neighbours in rows.
class Path {
  constructor(section, id, title, unit) {
    this.section = section;
    this.unit = unit;
    this.heading = title;
    this.title = element("b", {});
    this.chart = new Chart("");
    this.chart.plot.id = id;
    this.strips = new LazyTable(`Neighbours by ${unit}`, `Its neighbours by ${unit}`);
    this.table = new LazyTable(`Shares by ${unit}`);
    this.node = element("figure", { class: "card" }, element("figcaption", {}, this.title), this.chart.plot, element("p", { class: "meaning" }, "Share of its affinity that goes to each class."), this.table.node, this.strips.node);
  }

  show(found, what) {
    const { section } = this;
    this.title.textContent = `${this.heading}: ${what}`;
    this.chart.plot.setAttribute("aria-label", `Stacked bars: ${this.title.textContent}`);
    this.chart.plot.hidden = this.table.node.hidden = this.node.querySelector(".meaning").hidden = !found.shares;
    if (found.shares) this.table.set(() => table(["", ...range(found.shares[0]?.length ?? 0).map((c) => section.className(c))], found.names.map((name, k) => [name, ...Array.from(found.shares[k], percent)])));
    if (found.shares) {
      this.chart.draw(() => {
        const classes = range(found.shares[0]?.length ?? 0);
        const total = classes.map((c) => found.shares.reduce((sum, line) => sum + (line[c] || 0), 0));
        const label = section.samples?.labels?.[section.index] ?? -1;
        const shown = classes.sort((a, b) => total[b] - total[a]).slice(0, BARS).sort((a, b) => (b === label) - (a === label) || a - b);
        return [shown.map((c) => ({ type: "bar", x: range(found.names.length), y: found.shares.map((line) => line[c]), name: plain(section.className(c)), hoverinfo: "text",
          text: found.shares.map((line, i) => `<b>${plain(section.className(c))}</b>${c === label ? " (its class)" : ""}<br>${plain(found.names[i])}: ${percent(line[c])}`), textposition: "none",
          marker: { color: classColour(c), line: { width: 0 } } })),
        { barmode: "stack", bargap: 0.08, uirevision: `${found.names.length}`, xaxis: { ...ticks(found.names, 30, 18), showgrid: false, ...upright(found.names, this.chart.plot) }, yaxis: { range: [0, 1.01], tickformat: ".0%" } }];
      });
    }
    this.strips.set(() => element("table", { class: "strips" }, element("tbody", {}, ...found.names.map((name, k) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, element("div", { class: `${section.tiles} small` }, ...Array.from(found.nearest[k]).filter((j) => j >= 0).map((j) => section.pick(j)))))))));
  }
}

class List {
  constructor(section, id, title) {
    this.section = section;
    this.text = element("p", { class: "meaning" });
    this.tiles = element("div", { id });
    this.node = element("div", { class: "card" }, element("h2", {}, title), this.text, this.tiles);
  }

  show(found, text) {
    this.node.hidden = !found;
    this.text.textContent = text;
    this.tiles.className = this.section.tiles;
    this.tiles.replaceChildren(...(found?.length ? found.map(([i, more]) => this.section.pick(i, more)) : [element("p", {}, "None.")]));
  }
}

// What each class adds to the modularity of each layer.
class ByClass {
  constructor() {
    this.title = element("b", {});
    this.chart = new Chart("");
    this.chart.plot.id = "by-class";
    this.text = element("p", { class: "meaning" });
    this.table = new LazyTable("Modularity by class");
    this.node = element("figure", { class: "card", hidden: true }, element("figcaption", {}, this.title), this.chart.plot, this.text, this.table.node);
  }

  show(measure, run, moment) {
    this.node.hidden = !measure;
    if (!measure) return;
    const values = unpack(measure.values), names = run.classes;
    const z = range(names.length).map((c) => range(run.layers.length).map((i) => row(values, i)[c]));
    this.title.textContent = `${measure.title}, ${moment.text}`;
    this.text.textContent = measure.meaning;
    this.chart.plot.setAttribute("aria-label", `Heatmap: ${this.title.textContent}. Its values are in the table below.`);
    this.chart.draw(() => [[{ type: "heatmap", z, colorscale: SEQUENTIAL, hoverinfo: "text", colorbar: { thickness: 10, outlinewidth: 0 },
      text: z.map((line, c) => line.map((v, i) => `<b>${plain(names[c])}</b> in ${plain(run.short[i])}<br>${number(v, 4)}`)) }],
    { uirevision: `${names.length}`, margin: { l: 20, r: 8, t: 10, b: 20 }, xaxis: { ...ticks(run.short, 30, 18), showgrid: false, ...upright(run.short, this.chart.plot) }, yaxis: { ...ticks(names, 30, 18), showgrid: false, range: [names.length - 0.5, -0.5] } }]);
    this.table.set(() => table(["", ...run.short], z.map((line, c) => [names[c], ...line.map((v) => number(v, 4))])));
  }
}

class ClassMatrix {
  constructor() {
    this.title = element("b", {});
    this.chart = new Chart("", { tall: true });
    this.chart.plot.id = "classes";
    this.text = element("p", { class: "meaning" });
    this.table = new LazyTable("Affinity between classes");
    this.node = element("figure", { class: "card", hidden: true }, element("figcaption", {}, this.title), this.chart.plot, this.text, this.table.node);
  }

  show(shown) {
    this.node.hidden = !shown;
    if (!shown) return;
    const { shares, labels, classes, where } = shown;
    const count = shares.shape[1];
    const z = range(count).map(() => new Array(count).fill(0)), members = new Array(count).fill(0);
    labels.forEach((c, i) => {
      const line = row(shares, i);
      if (c < 0 || !Number.isFinite(line[0])) return;
      members[c] += 1;
      line.forEach((v, k) => { z[c][k] += v; });
    });
    z.forEach((line, c) => line.forEach((_, k) => { line[k] = members[c] ? line[k] / members[c] : NaN; }));
    const names = range(count).map((c) => classes[c] ?? `class ${c}`);
    const pairs = range(count).flatMap((a) => range(a).map((b) => [a, b, (z[a][b] + z[b][a]) / 2])).filter(([, , v]) => v >= 0.005).sort((p, q) => q[2] - p[2]).slice(0, 3);
    this.title.textContent = `Class by class: ${where}`;
    this.text.textContent = `Share of a class's affinity (down) that goes to each class (across).${pairs.length ? ` Still most alike: ${pairs.map(([a, b, v]) => `${names[b]} and ${names[a]} (${number(v, 2)})`).join(", ")}.` : ""}`;
    this.chart.plot.setAttribute("aria-label", `Heatmap: ${this.title.textContent}. Its values are in the table below.`);
    this.chart.draw(() => [[{ type: "heatmap", z, zmin: 0, zmax: 1, colorscale: SEQUENTIAL, hoverinfo: "text",
      text: z.map((line, a) => line.map((v, b) => `<b>${plain(names[a])}</b> to <b>${plain(names[b])}</b><br>${percent(v)}`)), colorbar: { thickness: 10, outlinewidth: 0 } }],
    { uirevision: `${count}`, margin: { l: 20, r: 8, t: 10, b: 20 }, xaxis: { ...ticks(names, 30, 18), showgrid: false, ...upright(names, this.chart.plot), constrain: "domain" }, yaxis: { ...ticks(names, 30, 18), showgrid: false, range: [count - 0.5, -0.5], scaleanchor: "x" } }]);
    this.table.set(() => table(["", ...names], z.map((line, a) => [names[a], ...line.map((v) => number(v, 2))])));
  }
}
