// Where the page's data comes from: the routes of a server, or what is packed into the page. Nothing else differs.

const ARRAYS = { f4: Float32Array, i2: Int16Array, i4: Int32Array, scaled: Int16Array };

// A table of numbers, flat with its shape; what is missing is NaN.
export function unpack(packed) {
  if (packed === null || packed === undefined) return null;
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  let values = new ARRAYS[packed.type](bytes.buffer);
  if (packed.type === "scaled") values = Float32Array.from(values, (q) => (q === -32768 ? NaN : q * packed.scale));
  return { shape: packed.shape, values };
}

export const row = (table, i) => table.values.subarray(i * table.shape[1], (i + 1) * table.shape[1]);
export const rows = (table) => Array.from({ length: table.shape[0] }, (_, i) => Array.from(row(table, i)));
export const column = (table, i) => Array.from({ length: table.shape[0] }, (_, t) => table.values[t * table.shape[1] + i]);

export class Fetched {
  live = true;

  async get(piece, query = {}) {
    const answer = await fetch(new URL(`./${piece}?${new URLSearchParams(query)}`, import.meta.url));
    const found = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
    if (!answer.ok) throw new Error(found.error);
    return found;
  }

  async prepare() {
    await Promise.all([
      loaded("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href }),
      loaded("script", { src: new URL("./plotly.js", import.meta.url).href }),
    ]);
  }
}

function loaded(tag, attributes) {
  return new Promise((done, failed) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.onload = done;
    node.onerror = () => failed(new Error(`${attributes.href ?? attributes.src} cannot be loaded. Is plotly installed? pip install "lightning-ssc[report]"`));
    document.head.append(node);
  });
}

// A report: pieces by their name and arguments. Of single inputs it has the whole tables, from which rows are taken.
export class Packed {
  live = false;

  constructor(pieces) { this.pieces = pieces; }

  has(piece, query) { return JSON.stringify([piece, ...Object.values(query)]) in this.pieces; }

  async get(piece, query = {}) {
    const found = this.pieces[JSON.stringify([piece, ...Object.values(query)])];
    if (found !== undefined) return found;
    const { run, step, layer, index } = query;
    const { layers, moments } = (piece === "input" || piece === "history") ? this.pieces[JSON.stringify(["run", run])] : {};
    if (piece === "input") {
      const held = layers.filter((name) => this.has("neighbours", { run, step, layer: name }));
      return { layers: held, ...this.rows(held.map((name) => ({ run, step, layer: name })), index) };
    }
    if (piece === "history") {
      const held = moments.map((m) => m.step).filter((s) => this.has("neighbours", { run, step: s, layer }));
      return { steps: held, ...this.rows(held.map((s) => ({ run, step: s, layer })), index) };
    }
    throw new Error("This report does not hold it: reports keep single moments of the inputs. `lightning-ssc live` shows all of them.");
  }

  rows(queries, index) {
    const tables = queries.map((query) => this.pieces[JSON.stringify(["neighbours", ...Object.values(query)])]);
    const chosen = (name) => tables.length && tables.every((table) => table[name]) ? tables.map((table) => row(unpack(table[name]), index)) : null;
    return { unpacked: { nearest: chosen("nearest"), shares: chosen("shares") } };
  }

  async prepare() {}
}

const KEPT = 300; // pieces

// What the page knows and what is chosen on it; sections are told when it changes.
export class Model extends EventTarget {
  runs = []; // as the server lists them
  beside = []; // names of runs that are read for a comparison
  chosen = []; // names of the runs that are shown, the first of which is the one that single things are shown of
  read = new Map(); // what is known of each run that was chosen
  hidden = new Set(); // names of layers that are switched off
  kept = new Map(); // pieces by what was asked

  constructor(source) { super(); this.source = source; }

  get run() { return this.read.get(this.chosen[0]) ?? null; }
  get shown() { return this.chosen.map((name) => this.read.get(name)).filter(Boolean); }

  tell(what) { this.dispatchEvent(new CustomEvent("change", { detail: what })); }

  async choose(names) {
    this.chosen = names;
    await this.refresh();
    this.tell("runs");
  }

  // Read again what has changed; says whether anything had.
  async refresh() {
    this.runs = (await this.source.get("runs")).runs;
    let changed = false;
    for (const name of new Set([...this.chosen, ...this.beside])) {
      const listed = this.runs.find((run) => run.name === name);
      const before = this.read.get(name);
      if (!listed || listed.signature === before?.signature) continue;
      const found = await this.source.get("run", { run: name });
      const measures = found.measures.map((measure) => ({ ...measure, table: unpack(measure.values), errors: measure.spreads ? unpack(measure.spreads) : null }));
      this.read.set(name, { ...found, name, measures, signature: listed.signature, computed: before?.computed ?? [], complete: false });
      changed = true;
    }
    const there = this.chosen.filter((name) => this.runs.some((run) => run.name === name));
    if (there.length < this.chosen.length) { this.chosen = there; changed = true; }
    return changed;
  }

  // Moments at which the inputs are there: in a report some.
  momentsOfInputs(run) {
    if (this.source.live) return run.moments;
    return run.moments.filter(({ step }) => this.source.has("embedding", { run: run.name, step, layer: run.hidden, normalized: 0 }));
  }

  // A piece of one moment, or of two, which is not asked for again while its files stay the same.
  piece(name, query, ...moments) {
    const key = JSON.stringify([name, query, moments.map((moment) => moment.time)]);
    if (!this.kept.has(key)) {
      const found = this.source.get(name, query);
      found.catch(() => this.kept.delete(key));
      this.kept.set(key, found);
      if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
    }
    return this.kept.get(key);
  }

  // Curves to the latest snapshot come bit by bit; one more bit of every run that is not complete.
  async refine() {
    for (const run of this.shown) {
      if (run.complete || run.moments.length === 0) continue;
      const found = await this.source.get("computed", { run: run.name });
      const current = this.read.get(run.name);
      if (current !== run || found.latest !== run.moments.at(-1).step) continue; // it has grown meanwhile
      run.computed = found.measures.map((measure) => ({ ...measure, table: unpack(measure.values), errors: measure.spreads ? unpack(measure.spreads) : null })).filter((m) => m.table.shape[0] === run.moments.length);
      run.complete = found.done;
      this.tell("refined");
    }
    return this.shown.every((run) => run.complete || run.moments.length === 0);
  }
}
