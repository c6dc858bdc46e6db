// The page: runs are chosen at the top, sections are tabs, and what a run writes appears by itself.
import { Fetched, Model } from "./data.js";
import { Architecture } from "./architecture.js";
import { Inputs } from "./inputs.js";
import { Run } from "./run.js";
import { Training } from "./training.js";
import { ago, button, check, element, notice, redrawAll } from "./ui.js";

const SECTIONS = [["Training", Training], ["Architecture", Architecture], ["Inputs", Inputs], ["This run", Run]];
const POLL = 2000; // milliseconds

export async function render(source = new Fetched()) {
  document.documentElement.lang = "en";
  followTheme();
  const page = new Page(source);
  document.body.append(page.node);
  await page.start();
  document.body.dataset.ready = "yes";
}

// TensorBoard's switch where the page is its tab, the system's elsewhere.
function followTheme() {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let host = null;
  try {
    if (window.parent !== window) host = window.parent.document.body;
  } catch { /* framed by another site: the system's */ }
  const follow = () => {
    const dark = host === null ? system.matches : host.classList.contains("dark-mode");
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    redrawAll();
  };
  follow();
  if (host === null) system.addEventListener("change", follow);
  else new MutationObserver(follow).observe(host, { attributes: true, attributeFilter: ["class"] });
}

class Page {
  constructor(source) {
    this.model = new Model(source);
    this.status = element("p", { class: "status", role: "status" });
    this.picker = element("details", { class: "picker" });
    this.troubles = element("div", {});
    this.body = element("main", {});
    this.sections = SECTIONS.map(([name, Section]) => ({ name, section: new Section(this.model) }));
    this.tabs = this.sections.map(({ name }, i) => element("button", { type: "button", role: "tab", id: `tab-${i}`, "aria-controls": `panel-${i}`, onclick: () => this.open(i) }, name));
    this.panels = this.sections.map(({ section }, i) => element("section", { role: "tabpanel", id: `panel-${i}`, "aria-labelledby": `tab-${i}` }, section.node));
    this.tablist = element("nav", { role: "tablist", "aria-label": "Sections", onkeydown: (event) => this.step(event) }, ...this.tabs);
    this.node = element("div", { class: "page" },
      element("header", {}, element("h1", {}, "Subspaces"), this.tablist, this.picker, this.status), this.troubles, this.body);
    this.model.addEventListener("change", ({ detail }) => this.update(detail));
    document.addEventListener("click", (event) => { if (!this.picker.contains(event.target)) this.picker.open = false; });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.picker.open = false; });
  }

  async start() {
    this.body.replaceChildren(notice("loading", "Reading the runs …"));
    try {
      await Promise.all([this.model.source.prepare(), this.model.refresh().then(() => this.model.chooseLatest())]);
    } catch (error) {
      this.body.replaceChildren(notice("error", "The page cannot be drawn.", error.message));
      return;
    }
    this.open(Math.max(0, this.sections.findIndex(({ name }) => `#${slug(name)}` === window.location.hash)), false);
    this.update("runs");
    if (this.model.source.live) this.poll();
  }

  async pickLatest() {
    await this.model.chooseLatest();
    this.update("runs");
  }

  async poll() {
    for (;;) {
      await new Promise((done) => setTimeout(done, POLL));
      if (document.hidden) continue;
      try {
        const changed = await this.model.refresh();
        this.lost = null;
        if (!this.model.chosen.length) await this.pickLatest();
        else if (changed) this.model.tell("grown");
      } catch (error) {
        this.lost = error;
      }
      this.drawStatus();
      this.drawPicker();
    }
  }

  async refine() {
    if (this.refining) return;
    this.refining = true;
    try {
      while (!await this.model.refine());
      this.failed = null;
    } catch (error) {
      this.failed = error.message;
      this.update("refined");
    }
    this.refining = false;
  }

  update(what) {
    const { runs, run, chosen } = this.model;
    this.drawPicker();
    this.drawStatus();
    const troubles = [...this.model.shown.flatMap((of) => of.troubles), ...(this.failed ? [this.failed] : [])];
    this.troubles.replaceChildren(...(troubles.length ? [notice("warning", "Some files are left out; the rest is shown.",
      element("ul", {}, ...troubles.map((text) => element("li", {}, text))))] : []));
    if (runs.length === 0) {
      this.body.replaceChildren(notice("empty", "No snapshots yet.",
        "This page shows the first as soon as it is written to this folder; it need not be reloaded.",
        element("pre", {}, "from lightning_ssc import SSCMonitor\n\ntrainer = pl.Trainer(callbacks=[SSCMonitor()])")));
    } else if (!run || run.moments.length === 0) {
      this.body.replaceChildren(notice("empty", chosen.length ? "No snapshot of this run can be read." : "No run is chosen.", "Choose a run above."));
    } else {
      if (this.body.firstChild !== this.panels[0]) this.body.replaceChildren(...this.panels);
      this.stale = new Set(this.sections.keys());
      this.fresh(what);
      if (what !== "refined" && what !== "layers") this.refine();
    }
  }

  // The section that is open is drawn; the others when they are opened.
  fresh(what) {
    if (!this.stale?.has(this.current) || !this.body.contains(this.panels[this.current])) return;
    this.stale.delete(this.current);
    this.sections[this.current].section.update(what);
  }

  open(i, focus = true) {
    this.current = i;
    this.tabs.forEach((tab, j) => { tab.setAttribute("aria-selected", String(j === i)); tab.tabIndex = j === i ? 0 : -1; });
    this.panels.forEach((panel, j) => { panel.hidden = j !== i; });
    if (focus) { this.tabs[i].focus(); history.replaceState(null, "", `#${slug(this.sections[i].name)}`); }
    this.fresh("opened");
  }

  step(event) {
    const to = { ArrowRight: this.current + 1, ArrowLeft: this.current - 1, Home: 0, End: this.tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.open((to + this.tabs.length) % this.tabs.length);
  }

  drawPicker() {
    const { runs, chosen } = this.model;
    const key = JSON.stringify([runs.map((run) => [run.name, run.snapshots]), chosen]);
    if (this.picked === key) return;
    this.picked = key;
    this.picker.hidden = runs.length === 0;
    const title = chosen.length > 1 ? `${chosen[0]} and ${chosen.length - 1} more` : chosen[0] ?? "choose a run";
    const list = runs.map((run) => {
      const line = check(run.name, chosen.includes(run.name), (on) => this.model.choose(on ? [...this.model.chosen, run.name] : this.model.chosen.filter((name) => name !== run.name)));
      line.append(element("small", {}, ` ${run.snapshots} snapshots`));
      return line;
    });
    this.picker.replaceChildren(
      element("summary", { title: chosen.join(", ") }, element("span", { class: "label" }, "Runs "), element("span", { class: "name" }, title)),
      element("div", { class: "menu" }, ...list,
        ...(runs.length > 1 ? [element("div", { class: "buttons" }, button("All", () => this.model.choose(runs.map((run) => run.name))), button("Latest only", () => this.pickLatest()))] : [])));
  }

  drawStatus() {
    const listed = this.model.runs.find((run) => run.name === this.model.chosen[0]);
    this.status.classList.toggle("lost", Boolean(this.lost));
    if (this.lost) this.status.textContent = `The server does not answer; what is shown is from before. (${this.lost.message})`;
    else if (!listed) this.status.textContent = "";
    else this.status.textContent = this.model.source.live ? `${listed.snapshots} snapshots, the last ${ago(listed.age)} ago${listed.state === "crashed" ? "; the run has crashed" : ""}` : `${listed.snapshots} snapshots`;
  }
}

const slug = (name) => name.toLowerCase().replace(/ /g, "-");
