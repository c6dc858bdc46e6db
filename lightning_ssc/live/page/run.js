// The run itself: how it goes, what it costs, how its graphs were made.
import { row } from "./data.js";
import { classColour, layerColour } from "./colors.js";
import { Chart, LazyTable, ago, element, notice, number, plain, range, scroll, size, table, ticks, upright, value } from "./ui.js";

const PATIENCE = 4; // times the longest pause so far after which a run that goes on counts as late
const LEAST = 60; // seconds

export class Run {
  constructor(model) {
    this.model = model;
    this.state = element("div", {});
    this.cost = new Cost();
    this.layerCost = new LayerCost();
    this.left = element("div", { class: "card" });
    this.layers = element("div", { class: "card wide" });
    this.about = element("div", { class: "card" });
    this.node = element("div", {}, this.state, element("div", { class: "grid wide" }, this.about, this.cost.node, this.layerCost.node, this.left), this.layers);
  }

  update(what) {
    if (what === "layers") return;
    const { run, runs, source } = this.model;
    const listed = runs.find(({ name }) => name === run.name);
    this.state.replaceChildren(...(source.live ? [progress(run, listed)] : []));
    this.cost.show(run);
    this.layerCost.show(run);
    this.left.replaceChildren(element("h2", {}, "Left out, and why"), ...leftOut(run));
    this.about.replaceChildren(element("h2", {}, run.name), scroll("Settings and versions", table(["", "value"], about(run, listed))));
    const known = [...run.measures, ...run.computed];
    const last = run.moments.length - 1;
    this.layers.replaceChildren(element("h2", {}, `Layers at ${run.moments[last].text}`), element("p", { class: "meaning" }, "One line a layer, in order of execution; what is measured, and where it began."),
      scroll("Layers", table(["layer", ...known.flatMap((measure) => [measure.over === "layer" ? measure.axis : measure.title, ...(measure.name === "modularity" ? [`at ${run.moments[0].text}`] : [])])],
        run.short.map((name, i) => [name, ...known.flatMap((measure) => [value(measure, at(measure, last, i)), ...(measure.name === "modularity" ? [value(measure, at(measure, 0, i))] : [])])]))));
  }
}

const at = (measure, t, i) => (t < measure.table.shape[0] ? row(measure.table, t)[i] : NaN);

// How a run goes, from whether its process is there and from when its snapshots came.
function progress(run, listed) {
  const times = run.moments.map((moment) => moment.time);
  const longest = times.slice(1).reduce((most, time, t) => Math.max(most, time - times[t]), 0);
  const apart = longest ? `They came at most ${ago(longest)} apart.` : "How often they come is known with the next.";
  const late = longest > 0 && listed.age > Math.max(LEAST, PATIENCE * longest);
  const since = `The last snapshot came ${ago(listed.age)} ago.`;
  if (listed.state === "over") return notice("plain", "The run is over.", since);
  if (listed.state === "crashed") return notice("error", "The run has ended without finishing.", `${since} Its process is gone: it crashed or was killed.`);
  if (late) return notice("warning", "No new snapshot for longer than usual.", `${since} ${apart} ${listed.state === "elsewhere" ? "It runs on another machine, or ended there: it is over or has stalled." : "Its process is there: it may have stalled."}`);
  return notice("plain", "The run is going on.", `${since} ${apart}`);
}

// What was said while the run went on, and what no snapshot has a value of.
function leftOut(run) {
  const notes = run.notes.map(({ text, moment }) => element("li", {}, text, element("small", {}, ` ${moment}`)));
  const reasons = [...new Set(run.unmeasured.map(({ why }) => why))];
  const missing = reasons.map((why) => element("li", {}, `${run.unmeasured.filter((of) => of.why === why).map(({ title }) => title).join("; ")}: ${why}.`));
  return [
    element("h3", {}, "Said while it ran"), notes.length ? element("ul", { class: "plain" }, ...notes) : element("p", { class: "meaning" }, "Nothing."),
    element("h3", {}, "Not measured"), missing.length ? element("ul", { class: "plain" }, ...missing) : element("p", { class: "meaning" }, "Everything is."),
    element("h3", {}, "Files"), run.troubles.length ? element("ul", { class: "plain" }, ...run.troubles.map((text) => element("li", {}, text))) : element("p", { class: "meaning" }, "All could be read."),
  ];
}

function about(run, listed) {
  const gaps = run.measures.find(({ name }) => name === "gap");
  const worst = gaps ? Math.max(...Array.from(row(gaps.table, run.moments.length - 1)).filter(Number.isFinite)) : NaN;
  const last = run.moments.at(-1);
  return [
    ["inputs of the probe", String(run.size)], ["fingerprint of the probe", run.probe], ["layers", String(run.layers.length)],
    ["snapshots", `${run.moments.length}, ${run.moments[0].text} to ${last.text}`],
    ["learning rate", last.rate === null ? "not known" : String(Number(last.rate.toPrecision(6)))],
    ["worst relative duality gap", Number.isFinite(worst) ? worst.toExponential(1) : "not known"],
    ...(listed ? [["on disk", `${size(listed.bytes)}, ${size(listed.bytes / Math.max(1, listed.snapshots))} a snapshot`]] : []),
    ...Object.entries(run.settings).map(([key, text]) => [`setting ${key}`, text]),
    ...Object.entries(run.versions).map(([key, text]) => [`version of ${key}`, text]),
  ];
}

// A bar a layer: what it takes to solve and measure it, at the last snapshot that knows.
class LayerCost {
  constructor() {
    this.chart = new Chart("");
    this.chart.plot.id = "layer-cost";
    this.table = new LazyTable("Seconds by layer");
    this.text = element("p", { class: "meaning" });
    this.node = element("figure", { class: "card" }, element("figcaption", {}, element("b", {}, "Time a layer takes")), this.chart.plot, this.text, this.table.node);
  }

  show(run) {
    const known = range(run.moments.length).filter((t) => row(run.layerSeconds, t).some(Number.isFinite));
    const seconds = known.length ? Array.from(row(run.layerSeconds, known.at(-1))) : [];
    this.chart.plot.hidden = this.table.node.hidden = known.length === 0;
    this.chart.plot.setAttribute("aria-label", "Bars: seconds of every layer. The values are in the table below.");
    if (!known.length) { this.text.textContent = "This run does not know."; return; }
    const most = seconds.reduce((best, v, i) => (v > (seconds[best] || 0) ? i : best), 0);
    this.text.textContent = `To solve its graph and to measure it, at ${run.moments[known.at(-1)].text}; most of it ${run.short[most]} (${number(seconds[most], 2)} s). The passes through the network are for all layers at once.`;
    this.chart.draw(() => [[{ type: "bar", x: range(seconds.length), y: seconds, hoverinfo: "text", textposition: "none",
      text: seconds.map((v, i) => `<b>${plain(run.short[i])}</b><br>${number(v, 3)} s`), marker: { color: seconds.map((_, i) => layerColour(i, seconds.length)), line: { width: 0 } } }],
    { bargap: 0.15, margin: { l: 48, r: 12, t: 20, b: 40 }, yaxis: { title: { text: "seconds" }, rangemode: "tozero" }, xaxis: { showgrid: false, ...ticks(run.short, 26, 18), ...upright(run.short, this.chart.plot) } }]);
    this.table.set(() => table(["layer", ...known.map((t) => run.moments[t].text)], run.short.map((name, i) => [name, ...known.map((t) => number(row(run.layerSeconds, t)[i], 3))])));
  }
}

class Cost {
  constructor() {
    this.chart = new Chart("Stacked bars: seconds of every snapshot by stage. The values are in the table below.");
    this.chart.plot.id = "cost";
    this.table = new LazyTable("Seconds by stage");
    this.text = element("p", { class: "meaning" });
    this.node = element("figure", { class: "card" }, element("figcaption", {}, element("b", {}, "Time a snapshot takes")), this.chart.plot, this.text, this.table.node);
  }

  show(run) {
    const stages = [...new Set(run.moments.flatMap((moment) => Object.keys(moment.seconds)))].filter((stage) => stage !== "total");
    const all = run.moments.map((moment) => Object.entries(moment.seconds).filter(([stage]) => stage !== "total").reduce((sum, [, v]) => sum + v, 0));
    this.text.textContent = stages.length ? `By stage; ${number(all.reduce((a, b) => a + b, 0) / all.length, 1)} s on average. Storing and logging are not counted here.` : "This run does not know.";
    this.chart.plot.hidden = stages.length === 0;
    this.chart.draw(() => [stages.map((stage, k) => ({ type: "bar", name: plain(stage), x: range(run.moments.length), y: run.moments.map((moment) => moment.seconds[stage] ?? 0), hoverinfo: "text", textposition: "none",
      text: run.moments.map((moment) => `<b>${plain(stage)}</b><br>${plain(moment.text)}: ${number(moment.seconds[stage], 2)} s`), marker: { color: classColour(k), line: { width: 0 } } })),
    { barmode: "stack", bargap: 0.1, showlegend: true, legend: { orientation: "h", y: 1.12 }, margin: { l: 48, r: 12, t: 20, b: 40 }, yaxis: { title: { text: "seconds" } },
      xaxis: { showgrid: false, ...ticks(run.moments.map((moment) => moment.text), 8, 14) } }]);
    this.table.set(() => table(["", ...stages], run.moments.map((moment) => [moment.text, ...stages.map((stage) => number(moment.seconds[stage], 2))])));
  }
}
