"use strict";
// The page of one run. Everything it shows is in the JSON beside it; names reach the page as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const range = (n) => Array.from({ length: n }, (_, i) => i);
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "star", "x", "triangle-left", "triangle-right"];
const GLYPHS = "●■▲◆▼✚★✖◀▶"; // the same as text, in the same order
const LABELS = 40; // names that an axis can hold

// Plotly reads a few HTML tags and entities in its text.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const number = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits) : "-");
const className = (c) => (c < 0 ? "no class" : data.class_names[c] ?? `class ${c}`);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

// Tables of numbers come as scaled 16-bit integers in base64; the lowest one stands for a missing value.
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  const flat = Array.from(new Int16Array(bytes.buffer), (q) => (q === -32768 ? null : q * packed.scale));
  const fold = (values, shape) => {
    if (shape.length < 2) return values;
    const size = values.length / shape[0];
    return range(shape[0]).map((i) => fold(values.slice(i * size, (i + 1) * size), shape.slice(1)));
  };
  return fold(flat, packed.shape);
}

function fillTable(table, head, rows) {
  const cell = (tag, text, scope) => element(tag, { scope }, text);
  table.replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((text) => cell("th", text, "col")))),
    element("tbody", {}, ...rows.map((row) =>
      element("tr", {}, cell("th", row[0], "row"), ...row.slice(1).map((text) => cell("td", text, null))))),
  );
  return table;
}

// A table is made when its <details> is first opened, and again when what it shows has changed.
function tableOnDemand(details, make) {
  const region = details.querySelector(".scroll");
  const draw = () => { if (details.open) region.replaceChildren(make()); };
  details.addEventListener("toggle", draw);
  return draw;
}

const FONT = { family: "system-ui, sans-serif", size: 12, color: "#1d2429" };
const narrow = window.matchMedia("(max-width: 40rem)");
// Only buttons that stay on this page: by default some versions of Plotly offer to upload the chart.
const config = { responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
const layout = (more) => ({
  font: FONT, margin: { l: 50, r: 15, t: 30, b: 45 }, hovermode: "closest", showlegend: false,
  // A finger that scrolls the page must not zoom the plot.
  dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom", ...more,
});

// -- Training

const shown = data.layers.map(() => true);
const charts = data.families.map((family) => {
  const power = (v) => (v === null ? null : 10 ** v); // what spans decades comes as logarithms
  const values = unpack(family.values).map((row) => (family.log ? row.map(power) : row));
  const value = (v) => (family.log && Number.isFinite(v) ? v.toExponential(1) : number(v));
  const plot = element("div", { class: "plot", role: "img", "aria-label": `Line chart: ${family.title}. Its values are in the table below.` });
  const details = element("details", {}, element("summary", {}, "Values as a table"),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${family.title}` }));
  const figure = element("figure", {}, element("figcaption", {}, element("b", {}, family.title), family.text), plot, details);
  byId("curves").append(figure);
  const redraw = tableOnDemand(details, () => fillTable(element("table"),
    [data.unit, ...data.layers.filter((_, i) => shown[i])],
    data.times.map((epoch, t) => [String(epoch), ...values[t].filter((_, i) => shown[i]).map(value)])));
  const traces = data.layers.map((name, i) => ({
    x: data.times, y: values.map((row) => row[i]), name: plain(name), mode: "lines+markers",
    text: values.map((row, t) => `${plain(name)}<br>${data.unit} ${data.times[t]}: ${value(row[i])}`), hoverinfo: "text",
    line: { color: data.layer_colours[i], width: 2 }, marker: { size: 6, symbol: SYMBOLS[i % SYMBOLS.length], line: { color: FONT.color, width: 0.6 } },
  }));
  const draw = () => Plotly.newPlot(plot, traces, layout({
    xaxis: { title: { text: `finished ${data.unit}s (0: untrained)` }, zeroline: false,
      ...(data.times[data.times.length - 1] < 12 ? { dtick: 1 } : {}) },
    yaxis: { title: { text: family.axis }, zeroline: false,
      ...(family.log ? { type: "log", exponentformat: "power", automargin: true } : { rangemode: family.from_zero ? "tozero" : "normal" }) },
    shapes: data.drops.map(([x0, x1]) => ({ type: "rect", x0, x1, y0: 0, y1: 1, yref: "paper", layer: "below", fillcolor: "#eceff1", line: { width: 0 } })),
  }), config);
  return { plot, redraw, draw };
});
for (const { draw } of charts) draw(); // once all are in place, for only then do they have their width

const switches = data.layers.map((name, i) => {
  const box = element("input", { type: "checkbox", onchange: () => { shown[i] = box.checked; applySwitches(); } });
  box.checked = true;
  byId("switches").append(element("label", {}, box,
    element("span", { class: "swatch", style: { color: data.layer_colours[i] }, "aria-hidden": "true" },
      `${GLYPHS[i % GLYPHS.length]}\uFE0E`), name)); // the selector keeps it from being drawn as an emoji
  return box;
});
function applySwitches() {
  for (const { plot, redraw } of charts) {
    Plotly.restyle(plot, { visible: shown.slice() });
    redraw();
  }
}
const few = new Set(range(Math.min(5, shown.length)).map((k) => Math.round((k * (shown.length - 1)) / Math.max(1, Math.min(5, shown.length) - 1))));
const choices = { all: () => true, none: () => false, some: (i) => few.has(i) };
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    shown.forEach((_, i) => { shown[i] = switches[i].checked = choices[button.dataset.show](i); });
    applySwitches();
  });
}

// -- Architecture

function axis(more) {
  const step = Math.ceil(data.layers.length / LABELS);
  const places = range(data.layers.length).filter((i) => i % step === 0);
  // Long names would leave a phone no room for the picture.
  const short = (name) => (narrow.matches && name.length > 12 ? `${name.slice(0, 5)}…${name.slice(-6)}` : name);
  return { tickvals: places, ticktext: places.map((i) => plain(short(data.layers[i]))), tickfont: { size: 9 },
    automargin: true, showgrid: false, zeroline: false, constrain: "domain", ...more };
}
function heatmap(values) {
  return { type: "heatmap", z: values, zmin: 0, zmax: 1, colorscale: "Viridis", hoverinfo: "text", hoverongaps: false,
    colorbar: narrow.matches ? { orientation: "h", y: 1.01, yanchor: "bottom", thickness: 10, outlinewidth: 0 } : { thickness: 12, outlinewidth: 0 },
    text: values.map((row, i) => row.map((v, j) => `${plain(data.layers[i])}<br>${plain(data.layers[j])}<br>${number(v)}`)) };
}
function outlines(blocks) {
  const ends = [...blocks.starts.slice(1), data.layers.length];
  return blocks.starts.map((start, b) => ({ type: "rect", x0: start - 0.5, y0: start - 0.5, x1: ends[b] - 0.5, y1: ends[b] - 0.5,
    line: { color: "white", width: 2 } }));
}
const square = { xaxis: axis({ tickangle: -90 }), yaxis: axis({ autorange: "reversed", scaleanchor: "x" }) };
const matrixTable = (values) => fillTable(element("table"), ["layer", ...data.layers],
  values.map((row, i) => [data.layers[i], ...row.map((v) => number(v, 2))]));

const heatmaps = unpack(data.heatmaps);
byId("unit").textContent = `${data.unit}s`;
const slider = byId("epoch");
slider.max = String(data.times.length - 1);
slider.value = slider.max;
byId("heatmap").classList.add("tall");
byId("linear").classList.add("tall");
Plotly.newPlot("heatmap", [heatmap(heatmaps[heatmaps.length - 1])], layout(square), config);
const redrawHeatmapTable = tableOnDemand(byId("heatmap").parentElement.querySelector("details"), () => matrixTable(heatmaps[slider.value]));
function showEpoch() {
  const t = Number(slider.value);
  const { z, text } = heatmap(heatmaps[t]);
  byId("epoch-value").textContent = String(data.times[t]);
  slider.setAttribute("aria-valuetext", `${data.unit} ${data.times[t]}`);
  Plotly.update("heatmap", { z: [z], text: [text] }, { shapes: outlines(data.blocks[t]) });
  byId("block-text").textContent = data.blocks[t].text;
  redrawHeatmapTable();
}
slider.addEventListener("input", showEpoch);
showEpoch();
slider.disabled = data.times.length < 2;

if (data.linear === null) byId("linear-figure").remove();
else {
  const linear = unpack(data.linear);
  Plotly.newPlot("linear", [heatmap(linear)], layout(square), config);
  tableOnDemand(byId("linear-figure").querySelector("details"), () => matrixTable(linear));
}

// -- Pictures of inputs

if (data.sprite !== null) {
  document.head.append(element("style", {}, `.tile.shown { background-image: url(${data.sprite.uri}) }`));
}
function tile(i, classes = "") {
  const border = data.labels === null || data.labels[i] < 0 ? {} : { borderBottomColor: data.class_colours[data.labels[i]] };
  if (data.sprite === null) return element("span", { class: `tile plain ${classes}`, style: { aspectRatio: "1", ...border } }, `#${i}`);
  const { columns, rows, width, height } = data.sprite;
  const at = (place, count) => (count > 1 ? `${(100 * place) / (count - 1)}%` : "0%");
  return element("span", { class: `tile shown ${classes}`, role: "img", "aria-label": `picture of input ${i}`, style: {
    aspectRatio: `${width} / ${height}`, backgroundSize: `${100 * columns}% ${100 * rows}%`,
    backgroundPosition: `${at(i % columns, columns)} ${at(Math.floor(i / columns), rows)}`, ...border } });
}
const shares = data.shares === null ? null : unpack(data.shares);
const confidence = data.confidence === null ? null : unpack(data.confidence);

function describe(i) {
  const parts = [`Input ${i}`];
  if (data.indices !== null) parts.push(`number ${data.indices[i]} of its data set`);
  if (data.labels !== null) parts.push(`class: ${className(data.labels[i])}`);
  if (data.predictions !== null) parts.push(`network: ${className(data.predictions[i])}, score ${number(confidence?.[i], 2)}`);
  if (data.ssc_labels !== null) parts.push(`SSC label: ${data.ssc_labels[i] < 0 ? "none (isolated)" : className(data.ssc_labels[i])}`);
  return parts;
}
function bars(i) {
  const chart = element("div", { class: "bars" });
  if (shares === null || shares[i][0] === null) return chart;
  const order = range(shares[i].length).sort((a, b) => shares[i][b] - shares[i][a]).slice(0, 10).sort((a, b) => a - b);
  for (const c of order) {
    const marks = [c === data.labels[i] ? "its class" : "", data.predictions !== null && c === data.predictions[i] ? "network" : ""].filter(Boolean);
    const name = className(c) + (marks.length ? ` (${marks.join(", ")})` : "");
    chart.append(element("span", { class: "name", title: name }, name),
      element("span", { class: "bar", "aria-hidden": "true" },
        element("i", { style: { width: `${100 * shares[i][c]}%`, background: data.class_colours[c] } })),
      element("span", { class: "number" }, `${Math.round(100 * shares[i][c])} %`));
  }
  return chart;
}
function card(i) {
  const nearest = data.nearest[i].filter((j) => j >= 0);
  const [name, ...facts] = describe(i);
  return element("article", { class: "card" }, element("h4", {}, name), element("p", {}, facts.join(" · ")),
    element("div", { class: "top" }, tile(i, "big"), bars(i)),
    element("h5", {}, nearest.length ? `Inputs of highest affinity in ${data.layer}` : `No input has any affinity to it in ${data.layer}`),
    element("ol", { class: "neighbours" }, ...nearest.map((j) =>
      element("li", { title: data.labels === null ? null : className(data.labels[j]) }, tile(j), data.labels === null ? `#${j}` : className(data.labels[j])))));
}

// -- Inputs

const embeddings = data.embeddings.map(unpack);
const selectLayer = byId("embedding-layer");
const selectKind = byId("embedding-kind");
const selectClass = byId("embedding-class");
const chosen = byId("input-number");
selectLayer.append(...data.layers.map((name, i) => element("option", { value: String(i) }, name)));
selectLayer.value = String(data.layers.indexOf(data.layer));
if (data.labels === null) byId("class-control").remove();
else {
  selectClass.append(element("option", { value: "-1" }, "all classes"),
    ...data.class_names.map((_, c) => element("option", { value: String(c) }, className(c))));
}
chosen.max = String(data.size - 1);
let current = data.wrong[0] ?? 0;

function drawEmbedding() {
  const points = embeddings[selectKind.value][selectLayer.value];
  const groups = data.labels === null ? [0] : range(data.class_names.length);
  const highlighted = data.labels === null ? -1 : Number(selectClass.value);
  const traces = groups.map((c) => {
    const wrong = (i) => data.predictions !== null && data.labels[i] >= 0 && data.predictions[i] !== data.labels[i];
    // Correct ones first: the legend shows the symbol of the first.
    const members = range(data.size).filter((i) => data.labels === null || data.labels[i] === c).sort((a, b) => wrong(a) - wrong(b));
    const symbol = SYMBOLS[c % SYMBOLS.length];
    return { mode: "markers", x: members.map((i) => points[i][0]), y: members.map((i) => points[i][1]), customdata: members,
      name: data.labels === null ? "" : plain(className(c)), hoverinfo: "none",
      marker: { size: 7, symbol: members.map((i) => (wrong(i) ? `${symbol}-open` : symbol)),
        color: data.labels === null ? "#444" : data.class_colours[c],
        line: { color: FONT.color, width: members.map((i) => (wrong(i) ? 1.5 : 0.5)) },
        opacity: highlighted < 0 || highlighted === c ? 0.9 : 0.07 } };
  });
  const i = current;
  traces.push({ mode: "markers", x: [points[i][0]], y: [points[i][1]], hoverinfo: "skip", showlegend: false,
    marker: { size: 18, symbol: "circle-open", color: "#000", line: { width: 2.5 } } });
  const many = groups.length > 20;
  const axes = { zeroline: false, showticklabels: false };
  Plotly.react("embedding", traces, layout({
    showlegend: data.labels !== null && !many, legend: { orientation: "h", y: -0.1, itemclick: false, itemdoubleclick: false },
    xaxis: { ...axes, title: { text: "first eigenvector", standoff: 5 } }, yaxis: { ...axes, title: { text: "second eigenvector" } },
    margin: { l: 35, r: 10, t: 30, b: 40 },
  }), config);
}
function choose(i) {
  if (!Number.isInteger(i) || i < 0 || i >= data.size) return;
  current = i;
  chosen.value = String(i);
  byId("card").replaceChildren(card(i));
  drawEmbedding();
}
byId("embedding").classList.add("tall");
for (const select of [selectLayer, selectKind, selectClass]) select.addEventListener("change", drawEmbedding);
chosen.addEventListener("input", () => choose(chosen.valueAsNumber));
chosen.addEventListener("change", () => { if (chosen.value) chosen.value = String(current); }); // not a number that is no input
choose(current);

const tip = byId("tip");
byId("embedding").on("plotly_hover", ({ points, event }) => {
  const i = points[0].customdata;
  tip.replaceChildren(...(data.sprite === null ? [] : [tile(i)]), element("div", {}, ...describe(i).map((line) => element("div", {}, line))));
  tip.hidden = false;
  const { clientX, clientY } = event;
  tip.style.left = `${Math.max(0, Math.min(clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(0, Math.min(clientY + 14, window.innerHeight - tip.offsetHeight - 4))}px`;
});
byId("embedding").on("plotly_unhover", () => { tip.hidden = true; });
byId("embedding").on("plotly_click", ({ points }) => choose(points[0].customdata));

// -- Tables and single inputs

byId("overview").textContent = data.overview;
byId("bottom-up").textContent = data.bottom_up;
fillTable(byId("layer-table"), data.layer_table.head, data.layer_table.rows);
fillTable(byId("about-table"), data.about.head, data.about.rows);
if (data.label_table === null) byId("label-scroll").remove();
else fillTable(byId("label-table"), data.label_table.head, data.label_table.rows);
byId("label-text").textContent = data.label_text;
if (data.wrong.length) byId("wrong-cards").append(...data.wrong.map(card));
else byId("wrong").remove();
document.body.dataset.ready = "yes";
