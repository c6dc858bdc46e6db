// Which layers are alike: a heatmap at any moment, beside another moment or run, and their difference.
import { row, rows, unpack } from "./data.js";
import { SEQUENTIAL, diverging, layerColour } from "./colors.js";
import { Chart, Latest, LazyTable, MomentSlider, element, ink, notice, number, plain, range, select, table, ticks } from "./ui.js";

const NAMES = { pairwise_cka: "SSC-CKA", pairwise_linear_cka: "linear CKA" };
const WIDEST = 22; // letters of a name at an axis
const STAGES = 12; // more parts than these are no stages

export class Architecture {
  constructor(model) {
    this.model = model;
    this.kind = "pairwise_cka";
    this.against = ""; // "": nothing, "moment": another moment of the run, "run ...": another run
    this.row = null;
    this.controls = element("div", { class: "controls" });
    this.one = new MomentSlider("Moment", () => this.load());
    this.two = new MomentSlider("and", () => this.load());
    this.trouble = element("div", {});
    this.first = new Heatmap(this, "one");
    this.second = new Heatmap(this, "two");
    this.difference = new Heatmap(this, "difference");
    this.across = new Heatmap(this, "across");
    this.profile = new Profile(this);
    this.grid = element("div", { class: "grid wide" }, ...[this.first, this.second, this.difference, this.across, this.profile].map((card) => card.node));
    this.node = element("div", {}, this.controls, this.one.node, this.two.node, this.trouble, this.grid);
    this.latest = new Latest((error) => this.trouble.replaceChildren(...(error ? [notice("error", "This moment cannot be shown.", error.message)] : [])));
  }

  get other() { return this.against.startsWith("run ") ? this.model.read.get(this.against.slice(4)) : this.against ? this.model.run : null; }

  update(what) {
    if (what === "layers" || what === "refined") return;
    const { run, runs } = this.model;
    if (this.against.startsWith("run ") && !runs.some((listed) => `run ${listed.name}` === this.against)) this.against = "";
    this.one.set(run.moments);
    if (this.other) this.two.set(this.other.moments);
    this.drawControls();
    this.load();
  }

  drawControls() {
    const { run, runs } = this.model;
    const others = runs.filter((listed) => listed.name !== run.name);
    this.controls.replaceChildren(
      select("Similarity", Object.entries(NAMES), this.kind, (kind) => { this.kind = kind; this.load(); }),
      select("Compare with", [["", "nothing"], ["moment", "another moment"], ...others.map(({ name }) => [`run ${name}`, name])], this.against, (against) => this.compare(against)),
    );
    this.two.node.hidden = !this.other;
  }

  async compare(against) {
    this.against = against;
    this.model.beside = against.startsWith("run ") ? [against.slice(4)] : [];
    if (this.model.beside.length) await this.model.refresh();
    if (this.other) this.two.set(this.other.moments);
    if (against === "moment") { this.two.place = 0; this.two.show(); }
    this.drawControls();
    await this.load();
  }

  load() {
    const { model, other } = this;
    const run = model.run, [one, two] = [this.one.moment, other && this.two.moment];
    const same = other && JSON.stringify(other.layers) === JSON.stringify(run.layers);
    const fits = other && other !== run && other.probe === run.probe;
    const of = (which, moment) => model.piece("heatmap", { run: which.name, step: moment.step }, moment);
    return this.latest.do(
      () => Promise.all([of(run, one), other && two && of(other, two),
        fits && two && model.piece("between", { run: run.name, step: one.step, other_run: other.name, other_step: two.step }, one, two)]),
      ([first, second, between]) => {
        const kind = first[this.kind] ? this.kind : Object.keys(first)[0];
        const a = first[kind] && unpack(first[kind].values), b = second && second[kind] ? unpack(second[kind].values) : null;
        this.trouble.replaceChildren(...(kind !== this.kind && a ? [notice("warning", `This run has no ${NAMES[this.kind]} between layers.`, `${NAMES[kind]} is shown.`)] : []),
          ...(other && other !== run && !fits ? [notice("warning", "The two runs saw different probes.", "Their layers cannot be compared with each other, only the pictures side by side.")] : []));
        if (!a) this.trouble.replaceChildren(notice("empty", "This snapshot keeps no similarity between layers.", "There is one layer only, or its graphs are empty."));
        const named = (which, moment) => (other && other !== run ? `${which.name}, ${moment.text}` : moment.text);
        this.first.show(a && { title: named(run, one), values: a, rows: run.short, columns: run.short, blocks: first[kind].blocks, kind });
        this.second.show(b && { title: named(other, two), values: b, rows: other.short, columns: other.short, blocks: second[kind].blocks, kind });
        const less = a && b && same ? { shape: a.shape, values: a.values.map((v, i) => v - b.values[i]) } : null;
        this.difference.show(less && { title: `${named(run, one)} less ${named(other, two)}`, values: less, rows: run.short, columns: run.short, kind, signed: true });
        const cross = between && between.tables[kind];
        this.across.show(cross && { title: `Layers of ${run.name} (down) against those of ${other.name} (across)`, values: unpack(cross), rows: between.rows, columns: between.columns, kind });
        const chosen = this.row === null || this.row >= run.layers.length ? run.layers.indexOf(run.hidden) : this.row;
        this.profile.show(a && { run, row: chosen, kind, tables: [[named(run, one), a], ...(b && same ? [[named(other, two), b]] : [])] });
      },
    );
  }

  choose(i) { this.row = i; this.load(); }
}

class Heatmap {
  constructor(section, name) {
    this.title = element("b", {});
    this.chart = new Chart("", {
      tall: true,
      onclick: ({ points }) => { if (name !== "across") section.choose(points[0].y); },
      onzoom: (change) => { if (Object.keys(change).some((key) => /range/.test(key))) this.chart.redraw(); },
    });
    this.chart.plot.id = `heatmap-${name}`;
    this.text = element("p", { class: "meaning" });
    this.table = new LazyTable("Values of the heatmap");
    this.node = element("figure", { class: "card", hidden: true }, element("figcaption", {}, this.title), this.chart.plot, this.text, this.table.node);
  }

  show(shown) {
    this.node.hidden = !shown;
    if (!shown) return;
    const { title, values, rows: down, columns: across, blocks, kind, signed } = shown;
    const label = `${NAMES[kind]} between layers`;
    this.title.textContent = signed ? `Difference: ${title}` : title;
    this.chart.plot.setAttribute("aria-label", `Heatmap of ${label}, ${title}. Its values are in the table below.`);
    this.text.textContent = blocks ? described(blocks, down) : signed ? "Orange: more alike in the first. Blue: more alike in the second." : "";
    this.chart.draw(() => {
      const z = rows(values);
      const most = signed ? Math.max(0.05, z.flat().reduce((a, v) => Math.max(a, Math.abs(v) || 0), 0)) : 1;
      const text = z.map((line, i) => line.map((v, j) => `<b>${plain(down[i])}</b> and <b>${plain(across[j])}</b><br>${signed ? "difference" : NAMES[kind]} ${number(v)}`));
      const full = this.chart.plot._fullLayout;
      const width = this.chart.plot.clientWidth, narrow = width < 420;
      const axis = (names, which) => ({ ...ticks(names, narrow ? 14 : 30, narrow ? 12 : WIDEST, full?.[which]?.range), range: [-0.5, names.length - 0.5], showgrid: false, zeroline: false, constrain: "domain", showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid", spikecolor: ink("edge"), spikesnap: "data", tickfont: { size: 11 } });
      return [[{ type: "heatmap", z, text, hoverinfo: "text", zmin: signed ? -most : 0, zmax: most, xgap: 0, colorscale: signed ? diverging(ink("panel")) : SEQUENTIAL,
        colorbar: { thickness: 10, outlinewidth: 0, tickfont: { size: 11 }, title: { text: signed ? "difference" : NAMES[kind], side: "right" } } }],
      { shapes: [...(blocks ? squares(blocks.starts, down.length) : []), ...(signed ? [] : stages(down))], uirevision: `${down.length} ${across.length}`, margin: { l: 20, r: 8, t: 10, b: 20 },
        xaxis: { ...axis(across, "xaxis"), tickangle: -90 }, yaxis: { ...axis(down, "yaxis"), range: [down.length - 0.5, -0.5], scaleanchor: across.length === down.length ? "x" : undefined } }];
    });
    this.table.set(() => table(["", ...across], range(down.length).map((i) => [down[i], ...Array.from(row(values, i), (v) => number(v, 2))])));
  }
}

const squares = (starts, count) => starts.map((start, i) => {
  const end = starts[i + 1] ?? count;
  return { type: "rect", x0: start - 0.5, x1: end - 0.5, y0: start - 0.5, y1: end - 0.5, line: { color: "#fff", width: 1.6 } };
});

// Where the first part of the names changes.
function stages(names) {
  const parts = names.map((name) => name.split(".")[0]);
  const starts = range(names.length).filter((i) => i > 0 && parts[i] !== parts[i - 1]);
  if (starts.length === 0 || starts.length >= STAGES || starts.length >= names.length - 1) return [];
  const line = { color: "rgba(255,255,255,.55)", width: 1, dash: "dot" };
  return starts.flatMap((start) => [
    { type: "line", x0: start - 0.5, x1: start - 0.5, y0: -0.5, y1: names.length - 0.5, line },
    { type: "line", y0: start - 0.5, y1: start - 0.5, x0: -0.5, x1: names.length - 0.5, line },
  ]);
}

function described(blocks, names) {
  const parts = blocks.starts.map((start, i) => {
    const end = (blocks.starts[i + 1] ?? names.length) - 1;
    return start === end ? names[start] : `${names[start]} to ${names[end]} (${number(blocks.within[i], 2)})`;
  });
  const board = blocks.chessboard === null ? "" : ` Chess-board score: ${number(blocks.chessboard, 2)} (0: none, 1: perfect).`;
  return `Outlined: runs of layers more alike than layers are on average, with their mean similarity: ${parts.join("; ")}.${board}`;
}

class Profile {
  constructor(section) {
    this.section = section;
    this.title = element("b", {});
    this.chart = new Chart("", { tall: true });
    this.chart.plot.id = "profile";
    this.table = new LazyTable("Values of the row");
    this.choose = element("div", {});
    this.node = element("figure", { class: "card", hidden: true }, element("figcaption", {}, this.title), this.choose, this.chart.plot,
      element("p", { class: "meaning" }, "One row of the heatmap; a click on a row there chooses it, too."), this.table.node);
  }

  show(shown) {
    this.node.hidden = !shown;
    if (!shown) return;
    const { run, row: i, kind, tables } = shown;
    this.title.textContent = `${run.short[i]} and every other layer`;
    this.chart.plot.setAttribute("aria-label", `Line chart: ${this.title.textContent}. Its values are in the table below.`);
    if (!this.choose.contains(document.activeElement)) {
      this.choose.replaceChildren(select("Layer", run.short.map((name, k) => [String(k), name]), String(i), (k) => this.section.choose(Number(k))));
    }
    this.table.set(() => table(["", ...tables.map(([name]) => name)], run.short.map((name, j) => [name, ...tables.map(([, values]) => number(row(values, i)[j]))])));
    this.chart.draw(() => [tables.map(([name, values], t) => {
      const line = Array.from(row(values, i));
      return { x: range(line.length), y: line, mode: "lines+markers", name: plain(name), hoverinfo: "text", text: line.map((v, j) => `<b>${plain(run.short[j])}</b><br>${plain(name)}: ${number(v)}`),
        line: { color: ink(t ? "soft" : "accent"), dash: t ? "dash" : "solid", width: 1.6 }, marker: { size: 7, color: line.map((_, j) => layerColour(j, line.length)), line: { color: ink("paper"), width: 1 } } };
    }), {
      showlegend: tables.length > 1, legend: { orientation: "h", y: 1.1 }, uirevision: `${run.layers.length}`,
      xaxis: { ...ticks(run.short, 26, WIDEST), tickangle: -90, range: [-0.5, run.layers.length - 0.5], zeroline: false },
      yaxis: { range: [-0.02, 1.03], title: { text: NAMES[kind] } },
    }]);
  }
}
