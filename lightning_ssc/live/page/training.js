// How layers form and settle: a chart a measure, a line a layer, dark for shallow and bright for deep layers.
import { column } from "./data.js";
import { DASHES, glyph, layerColour, symbol } from "./colors.js";
import { Chart, LazyTable, button, check, choice, element, ink, number, plain, range, select, table, value } from "./ui.js";

const WIDTH = 1.96; // standard errors on both sides of a value: where 95 of 100 lie
const FEW = 6; // layers of "a few"
const MARKS = 1500; // points of a chart that all get a marker; of more, some of each line do
const SOME = 6;
const FEW_EPOCHS = 8; // that an axis names all of

export class Training {
  constructor(model) {
    this.model = model;
    this.x = "epoch";
    this.log = false;
    this.apart = false;
    this.group = "main";
    this.cards = new Map();
    this.controls = element("div", { class: "controls" });
    this.groups = element("div", { class: "controls" });
    this.grid = element("div", { class: "grid" });
    this.layers = new LayerSwitch(model);
    this.node = element("div", { class: "with-side" }, this.layers.node, element("div", { class: "main" }, this.groups, this.controls, this.grid));
  }

  update(what) {
    if (what !== "layers" && what !== "refined") {
      this.layers.update();
      this.drawControls();
    }
    this.draw(what);
  }

  drawControls() {
    const runs = this.model.shown;
    const known = runs.length > 0 && runs.every((run) => run.unit === "epoch");
    if (!known && this.x === "epoch") this.x = "step";
    const axes = [["epoch", "epochs"], ["step", "steps"], ["time", "time"]].filter(([key]) => known || key !== "epoch");
    this.controls.replaceChildren(
      select("Along", axes, this.x, (x) => { this.x = x; this.draw(); }),
      check("logarithmic", this.log, (log) => { this.log = log; this.draw(); }),
      ...(runs.length > 1 ? [check("runs side by side", this.apart, (apart) => { this.apart = apart; this.draw(); })] : []),
      ...(runs.length > 1 && !this.apart ? [element("span", { class: "legend" }, ...runs.map((run, r) =>
        element("span", {}, element("i", { class: `dash dash-${1 + (r % DASHES.length)}` }), run.name)))] : []),
    );
  }

  // Which measures are shown: the main ones, those that answer one question, or all.
  drawGroups(known) {
    const count = (group) => known.filter((measure) => isOf(measure, group)).length;
    const options = GROUPS.filter(([group]) => count(group) > 0).map(([group, text]) => [group, `${text} ${count(group)}`]);
    if (!options.some(([group]) => group === this.group)) this.group = "main";
    const key = JSON.stringify([options, this.group]);
    if (this.drawnGroups === key) return;
    this.drawnGroups = key;
    const at = [...this.groups.querySelectorAll("button")].indexOf(document.activeElement);
    this.groups.replaceChildren(choice("Measures", options, this.group, (group) => { this.group = group; this.draw(); }));
    this.groups.querySelectorAll("button")[at]?.focus();
  }

  // One group of runs a chart. What comes bit by bit draws no other charts again.
  draw(what = "") {
    const runs = this.model.shown;
    const groups = this.apart ? runs.map((run) => [run]) : [runs];
    const wanted = new Map();
    const refined = new Set(runs.flatMap((run) => run.computed).map((measure) => measure.name));
    const known = new Map(runs.flatMap((run) => curves(run)).map((measure) => [measure.name, measure]));
    this.drawGroups([...known.values()]);
    for (const measure of ordered([...known.values()].filter((measure) => isOf(measure, this.group)))) {
      groups.forEach((group, g) => wanted.set(`${measure.name} ${this.apart ? group[0].name : ""}`, [measure, group, g]));
    }
    for (const [key, card] of this.cards) {
      if (!wanted.has(key)) { card.remove(); this.cards.delete(key); }
    }
    for (const [key, [measure, group]] of wanted) {
      if (!this.cards.has(key)) {
        this.cards.set(key, new Curves(this));
        refined.add(measure.name);
      }
      const card = this.cards.get(key);
      if (what !== "refined" || refined.has(measure.name)) card.show(measure, group, this.apart);
    }
    const nodes = [...wanted.keys()].map((key) => this.cards.get(key).node);
    if (nodes.some((node, i) => this.grid.children[i] !== node)) this.grid.replaceChildren(...nodes);
  }
}

const curves = (run) => [...run.measures, ...run.computed];
const GROUPS = [["main", "Main"], ["classes", "Class structure"], ["settling", "Settling"], ["collapse", "Dimension and collapse"], ["health", "Health"], ["all", "All"]];
const isOf = (measure, group) => group === "all" || (group === "main" ? measure.main : measure.group === group);
const FIRST = ["modularity", "cka_to_final", "linear_cka_to_final"]; // the rest keeps its order
const place = (measure) => (FIRST.includes(measure.name) ? FIRST.indexOf(measure.name) : FIRST.length);
const ordered = (measures) => measures.sort((a, b) => place(a) - place(b));

class Curves {
  constructor(section) {
    this.section = section;
    this.title = element("b", {});
    this.text = element("p", { class: "meaning" });
    this.chart = new Chart("");
    this.table = new LazyTable("Values of the chart");
    this.node = element("figure", { class: "card" }, element("figcaption", {}, this.title), this.chart.plot, this.text, this.table.node);
  }

  show(measure, runs, apart) {
    const { x, log } = this.section;
    const hidden = this.section.model.hidden;
    const last = runs[0].moments.at(-1)?.text;
    const waiting = measure.over === "final" && runs.some((run) => !run.complete);
    const title = measure.over === "final" ? `${measure.title.replace(/the final state/, "now")} (${last})` : measure.title;
    this.title.textContent = apart ? `${title}: ${runs[0].name}` : title;
    this.text.textContent = measure.over === "final" ? TO_NOW[measure.name] + (waiting ? " Earlier snapshots are being compared …" : "") : measure.meaning;
    if (measure.ceiling) this.text.textContent += ` The dashed line is the most that these classes allow, ${number(measure.ceiling, 2)}.`;
    this.chart.plot.setAttribute("aria-label", `Line chart: ${title}. Its values are in the table below.`);
    const series = runs.map((run, r) => [run, r, curves(run).find((m) => m.name === measure.name)]).filter(([, , found]) => found);
    this.chart.draw(() => {
      const traces = [];
      for (const [run, r, found] of series) {
        const xs = times(run, x);
        const many = run.layers.length * xs.length > MARKS;
        run.layers.forEach((layer, i) => {
          if (hidden.has(layer)) return;
          const ys = column(found.table, i);
          const colour = layerColour(i, run.layers.length);
          const errors = found.errors ? column(found.errors, i).map((error) => WIDTH * error) : null;
          const within = (t) => (errors && Number.isFinite(errors[t]) ? ` ± ${value(found, errors[t])}` : "");
          traces.push({ x: xs, y: ys, mode: "lines+markers", hoverinfo: "text", connectgaps: true,
            text: ys.map((y, t) => `<b>${plain(run.short[i])}</b>${runs.length > 1 ? ` ${plain(run.name)}` : ""}<br>${plain(run.moments[t].text)}, step ${run.moments[t].step}: ${value(found, y)}${within(t)}`),
            ...(errors && !many ? { error_y: { type: "data", array: errors, color: colour, thickness: 1, width: 2 } } : {}),
            line: { color: colour, width: 1.6, dash: DASHES[apart ? 0 : r % DASHES.length] },
            marker: { symbol: symbol(i), size: 6, color: colour, maxdisplayed: many ? SOME : 0 } });
        });
      }
      const bands = apart || runs.length === 1 ? runs[0].drops.map(([before, after]) => {
        const at = times(runs[0], x);
        return { type: "rect", xref: "x", yref: "paper", x0: at[before], x1: at[after], y0: 0, y1: 1, line: { width: 0 }, fillcolor: ink("line"), opacity: 0.45, layer: "below" };
      }) : [];
      const ceiling = measure.ceiling ? [{ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: measure.ceiling, y1: measure.ceiling, line: { width: 1, dash: "dash", color: ink("soft") }, layer: "below" }] : [];
      const [low, high] = measure.range;
      const bounded = low !== null && high !== null && !measure.log;
      const least = traces.reduce((a, trace) => trace.y.reduce((b, y) => (y < b ? y : b), a), low ?? 0);
      return [traces, {
        shapes: [...bands, ...ceiling], uirevision: `${x}${log}`,
        xaxis: { title: { text: UNITS[x], standoff: 6 }, type: log ? "log" : "linear", zeroline: false,
          ...(x === "epoch" && !log && runs.every((run) => run.moments.at(-1).epoch <= FEW_EPOCHS) ? { dtick: 1 } : {}) },
        yaxis: { title: { text: plain(measure.axis), standoff: 8 }, type: measure.log ? "log" : "linear", exponentformat: "power",
          ...(bounded ? { range: this.chart.kept("yaxis", [least - 0.02, high + 0.03]) } : {}), rangemode: low === 0 && !measure.log ? "tozero" : "normal" },
      }];
    });
    this.table.set(() => element("div", {}, ...series.map(([run, , found]) => {
      const shown = range(run.layers.length).filter((i) => !hidden.has(run.layers[i]));
      return table(["", ...shown.map((i) => run.short[i])],
        run.moments.map((moment, t) => [moment.text, ...shown.map((i) => value(found, found.table.values[t * run.layers.length + i]))]),
        runs.length > 1 ? run.name : null);
    })));
  }

  remove() { this.chart.remove(); this.node.remove(); }
}

const UNITS = { epoch: "finished epochs (0: untrained)", step: "training steps", time: "minutes since the first snapshot" };
const TO_NOW = {
  cka_to_final: "How alike each earlier graph of a layer is to its graph now (Eq. 3), drawn anew with every snapshot. A layer whose line lies near 1 from early on has settled; in the paper layers settled from the bottom up.",
  linear_cka_to_final: "The same by linear CKA of the activations, which compares distances between inputs.",
};

export function times(run, x) {
  if (x === "time") return run.moments.map((moment) => (moment.time - run.moments[0].time) / 60);
  return run.moments.map((moment) => moment[x]);
}

// Layers by their names: the legend of all charts, and the switch for them.
class LayerSwitch {
  constructor(model) {
    this.model = model;
    this.filter = element("input", { type: "search", placeholder: "Filter: name, *glob*, 3-10", "aria-label": "Filter layers by name, glob or range", oninput: () => this.draw() });
    this.list = element("div", { class: "layers", role: "group", "aria-label": "Layers" });
    this.node = element("aside", { class: "side" },
      element("details", { open: !window.matchMedia("(max-width: 60rem)").matches }, element("summary", {}, "Layers ", element("small", {}, "shallow to deep")),
        this.filter,
        element("div", { class: "buttons" },
          button("All", () => this.only(() => true)), button("None", () => this.only(() => false)),
          button("A few", () => { const few = evenly(this.model.run.layers.length, FEW); this.only((i) => few.includes(i)); }),
          button("Filtered", () => this.only((i) => this.matches(i)), { title: "Show the layers that the filter finds, and no others" })),
        this.list));
  }

  update() {
    const run = this.model.run;
    const key = JSON.stringify(run?.layers);
    if (this.key !== key) this.anchor = null;
    this.key = key;
    this.draw();
  }

  matches(i) {
    const text = this.filter.value.trim();
    const span = text.match(/^(\d+)\s*[-–]\s*(\d+)$/);
    if (span) return i + 1 >= Number(span[1]) && i + 1 <= Number(span[2]);
    const parts = text.toLowerCase().split("*");
    let name = this.model.run.layers[i].toLowerCase();
    for (const part of parts) {
      const at = name.indexOf(part);
      if (at < 0) return false;
      name = name.slice(at + part.length);
    }
    return true;
  }

  draw() {
    const run = this.model.run;
    if (!run) { this.list.replaceChildren(); return; }
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.layer : null;
    this.list.replaceChildren(...range(run.layers.length).filter((i) => this.matches(i)).map((i) => {
      const box = element("input", { type: "checkbox", "data-layer": run.layers[i], onclick: (event) => this.toggle(i, box.checked, event.shiftKey) });
      box.checked = !this.model.hidden.has(run.layers[i]);
      return element("label", { title: run.layers[i] }, box, element("span", { class: "swatch", style: { color: layerColour(i, run.layers.length) } }, glyph(i)),
        element("span", { class: "name" }, run.short[i]));
    }));
    if (focused !== null) [...this.list.querySelectorAll("input")].find((box) => box.dataset.layer === focused)?.focus();
  }

  // With the shift key all from the last one that was switched to this one.
  toggle(i, on, all) {
    const from = all && this.anchor !== null ? this.anchor : i;
    for (const j of range(this.model.run.layers.length)) {
      if (j >= Math.min(i, from) && j <= Math.max(i, from)) this.switch(j, on);
    }
    this.anchor = i;
    this.draw();
    this.model.tell("layers");
  }

  only(wanted) {
    range(this.model.run?.layers.length ?? 0).forEach((i) => this.switch(i, wanted(i)));
    this.draw();
    this.model.tell("layers");
  }

  switch(i, on) { this.model.hidden[on ? "delete" : "add"](this.model.run.layers[i]); }
}

const evenly = (count, most) => range(Math.min(count, most)).map((k) => Math.round((k * (count - 1)) / Math.max(1, Math.min(count, most) - 1)));
