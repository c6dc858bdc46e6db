// Small things that every section is made of. Names reach the page as text, never as markup.

export const range = (n) => Array.from({ length: n }, (_, i) => i);
// Plotly reads a few HTML tags and entities in its text.
export const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
export const number = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1") : "–");
export const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : "–");

export function value(measure, v) {
  if (!Number.isFinite(v)) return "–";
  if (measure.log) return v.toExponential(1);
  return v.toFixed(Math.abs(v) < 10 ? 3 : 1);
}

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "style") Object.assign(node.style, value);
    else if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function table(head, body, caption = null) {
  const cell = (tag, content, scope) => element(tag, { scope }, content);
  return element("table", {},
    caption && element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...head.map((text) => cell("th", text, "col")))),
    element("tbody", {}, ...body.map((line) =>
      element("tr", {}, cell("th", line[0], "row"), ...line.slice(1).map((text) => cell("td", text, null))))));
}

export const scroll = (label, ...children) => element("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, ...children);

// A table that is made when it is first asked for, and again when what it shows has changed.
export class LazyTable {
  constructor(label, title = "Values as a table") {
    this.region = scroll(label);
    this.node = element("details", { class: "as-table", ontoggle: () => this.draw() }, element("summary", {}, title), this.region);
  }

  set(make) { this.make = make; this.draw(); }
  draw() { if (this.node.open && this.make) this.region.replaceChildren(this.make()); }
}

export function select(label, options, chosen, onchange) {
  const box = element("select", { onchange: () => onchange(box.value) },
    ...options.map(([key, text]) => element("option", { value: key }, text)));
  box.value = chosen;
  return element("label", { class: "field" }, element("span", {}, label), box);
}

export function check(label, checked, onchange) {
  const box = element("input", { type: "checkbox", onchange: () => onchange(box.checked) });
  box.checked = checked;
  return element("label", { class: "check" }, box, element("span", {}, label));
}

// One of a few things, as buttons beside each other.
export function choice(label, options, chosen, onchange) {
  return element("div", { class: "choice", role: "group", "aria-label": label }, ...options.map(([key, text]) =>
    element("button", { type: "button", "aria-pressed": String(key === chosen), onclick: () => onchange(key) }, text)));
}

export const button = (text, onclick, more = {}) => element("button", { type: "button", onclick, ...more }, text);
export const notice = (kind, title, ...lines) =>
  element("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "status" }, element("strong", {}, title), ...lines.map((line) => (typeof line === "string" ? element("p", {}, line) : line)));

// A slider over moments with a play button. It stays where it was put, and at the end it follows the run.
export class MomentSlider {
  constructor(label, onchange) {
    this.onchange = onchange;
    this.moments = [];
    this.range = element("input", { type: "range", min: 0, step: 1, "aria-label": label, oninput: () => { this.stop(); this.tell(); } });
    this.output = element("output", {});
    this.play = button("▶", () => (this.timer ? this.stop() : this.start()), { class: "play", "aria-label": "Play", title: "Play" });
    this.node = element("div", { class: "moment" }, element("span", { class: "label" }, label), this.play, this.range, this.output);
  }

  set(moments) {
    const before = this.moment, atEnd = this.moments.length === 0 || this.place === this.moments.length - 1;
    this.moments = moments;
    this.range.max = Math.max(0, moments.length - 1);
    const same = moments.findIndex((moment) => moment.step === before?.step);
    this.place = atEnd || same < 0 ? moments.length - 1 : same;
    this.range.disabled = this.play.disabled = moments.length < 2;
    this.show();
  }

  get place() { return this.range.valueAsNumber; }
  set place(place) { this.range.value = String(Math.max(0, place)); }
  get moment() { return this.moments[this.place] ?? null; }

  show() {
    this.output.textContent = this.moment?.text ?? "";
    this.range.setAttribute("aria-valuetext", this.output.textContent);
  }

  tell() { this.show(); return this.onchange(this.moment); }

  start() {
    if (this.place === this.moments.length - 1) this.place = 0;
    else this.place += 1;
    this.timer = true;
    this.play.textContent = "❚❚";
    this.play.setAttribute("aria-label", "Pause");
    const next = async () => {
      if (!this.timer) return;
      await this.tell();
      if (this.place >= this.moments.length - 1) { this.stop(); return; }
      this.timer = setTimeout(() => { this.place += 1; next(); }, 450);
    };
    next();
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
    this.play.textContent = "▶";
    this.play.setAttribute("aria-label", "Play");
  }
}

// A chart that is drawn when it comes into sight, and again when the theme changes; what was zoomed stays so.
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.target.chart?.see(entry.isIntersecting);
}, { rootMargin: "200px" });

// One a frame: the first is there before the last is drawn, and the page answers meanwhile.
const waiting = new Set();
function drawNext() {
  const [chart] = waiting;
  if (!chart) return;
  waiting.delete(chart);
  chart.drawNow();
  if (waiting.size) later(drawNext);
}
// A page that is hidden gets no frames, and is to be up to date when it is looked at.
const later = (next) => (document.hidden ? setTimeout(next, 0) : requestAnimationFrame(next));

const charts = new Set();
export const redrawAll = () => charts.forEach((chart) => chart.redraw());

export class Chart {
  constructor(label, { tall = false, onclick = null, onhover = null, onzoom = null, onleave = null } = {}) {
    this.plot = element("div", { class: tall ? "plot tall" : "plot", role: "img", "aria-label": label });
    this.plot.chart = this;
    this.handlers = { plotly_click: onclick, plotly_hover: onhover, plotly_unhover: onleave, plotly_relayout: onzoom };
    this.inSight = false;
    this.given = {};
    charts.add(this);
    seen.observe(this.plot);
  }

  // `make` gives traces and layout; it is called only when they are needed.
  draw(make) { this.make = make; this.redraw(); }

  see(inSight) {
    this.inSight = inSight;
    if (inSight && this.stale) this.redraw();
  }

  redraw() {
    if (!this.make) return;
    this.stale = !this.inSight;
    if (this.stale) return;
    if (waiting.size === 0) later(drawNext);
    waiting.add(this);
  }

  // Plotly keeps what was zoomed only as long as it is given the same range; another `revision` shows another thing.
  kept(axis, fresh, revision = "") {
    if (this.revision !== revision) this.given = {};
    this.revision = revision;
    const now = this.plot.layout?.[axis]?.range, given = this.given[axis];
    const zoomed = given && now && now.some((end, i) => Math.abs(end - given[i]) > 1e-9);
    this.given[axis] = zoomed ? given : fresh;
    return [...this.given[axis]];
  }

  drawNow() {
    const [traces, layout] = this.make();
    this.done = Plotly.react(this.plot, traces, framed(layout), CONFIG);
    if (!this.listening) {
      this.listening = true;
      for (const [event, handle] of Object.entries(this.handlers)) if (handle) this.plot.on(event, handle);
    }
  }

  remove() {
    charts.delete(this);
    waiting.delete(this);
    seen.unobserve(this.plot);
    if (this.listening) Plotly.purge(this.plot);
    this.plot.remove();
  }
}

const coarse = window.matchMedia("(pointer: coarse)");
// Only buttons that stay on this page: by default some versions of Plotly offer to upload the chart.
const CONFIG = { responsive: true, displaylogo: false, displayModeBar: coarse.matches ? false : "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function framed(layout) {
  const axis = { gridcolor: ink("line"), linecolor: ink("line"), zerolinecolor: ink("line"), tickcolor: ink("line"), automargin: true };
  const { xaxis = {}, yaxis = {}, ...more } = layout;
  return {
    font: { family: ink("face"), size: 12, color: ink("soft") }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: ink("panel"), bordercolor: ink("line"), font: { family: ink("face"), size: 13, color: ink("ink") }, align: "left" },
    margin: { l: 48, r: 12, t: 8, b: 40 }, hovermode: "closest", showlegend: false, uirevision: "kept",
    // A finger that scrolls the page must not zoom the plot.
    dragmode: coarse.matches ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("soft"), activecolor: ink("accent") },
    ...more, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis },
  };
}

// A name for a narrow place, with its middle left out.
export const brief = (name, most) => (name.length <= most ? name : `${name.slice(0, Math.ceil(most / 2) - 1)}…${name.slice(-Math.floor(most / 2))}`);

// What a section shows of one moment comes later than the wish for it: the last wish counts, and errors are shown.
export class Latest {
  constructor(onerror) { this.count = 0; this.onerror = onerror; }

  async do(ask, show) {
    const mine = ++this.count;
    try {
      const found = await ask();
      if (mine === this.count) { this.onerror(null); show(found); }
    } catch (error) {
      if (mine === this.count) this.onerror(error);
    }
  }
}

export function ago(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${(bytes / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

// Names across an axis: upright where they would not fit beside each other, at about eight pixels a letter.
export const upright = (names, plot) => ({ tickangle: names.reduce((sum, name) => sum + 8 * name.length + 8, 60) > plot.clientWidth ? -90 : 0 });

// An axis over names: as many as fit, of those in sight.
export function ticks(names, most, widest, sight = null) {
  const [low, high] = sight ? [Math.max(0, Math.ceil(Math.min(...sight))), Math.min(names.length - 1, Math.floor(Math.max(...sight)))] : [0, names.length - 1];
  const stride = Math.max(1, Math.ceil((high - low + 1) / most));
  const tickvals = range(Math.max(0, Math.floor((high - low) / stride) + 1)).map((k) => low + k * stride);
  return { tickmode: "array", tickvals, ticktext: tickvals.map((i) => plain(brief(names[i] ?? "", widest))) };
}
