// The rationale browser. mount(element, data, options) draws it; the default export is its widget for anywidget.
//
//   data     {blobs: {rows, vocab, tokens, ids, …}} as brite_lib/viewer/pack.py makes them, base64 text or bytes; css: its style sheet
//   options  {query, annotations: [record, …], onChange({query?, selection?, annotations?}), remember: keep annotations in the browser}

import { Annotations, stored } from "./annotations.js";
import { openTable } from "./data.js";
import { drawDetail } from "./detail.js";
import { h, percent, plural, typeset, visible } from "./dom.js";
import { available } from "./heat.js";
import { RationaleList } from "./list.js";
import { parseQuery } from "./query.js";
import { findFlips, firstFlips, flipBar, openExport, openKeys, openRates, toolbar } from "./toolbar.js";

let viewers = 0;

class Viewer {
  constructor(root, table, options) {
    this.root = root;
    this.table = table;
    this.options = options;
    this.name = `brite-${++viewers}`;
    this.marked = new Set();
    this.closed = new Set();
    this.sort = { column: null, down: false };
    this.grouped = table.problems.size < table.count;
    this.annotations = new Annotations(table, options.annotations ?? (options.remember ? stored.read(table.key) : []), (records) => this.annotated(records));
    this.fields = this.makeFields();
    this.channel = available(table)[0] ?? null;
    this.query = "";
    this.test = () => true;
    this.active = 0;
    this.list = new RationaleList(this);
    this.bar = toolbar(this);
    this.count = h("div", { class: "count", role: "status" });
    this.flipLine = h("div");
    this.detail = h("article", { class: "detail", "aria-label": "Rationale" });
    this.frame = h("div", { class: "frame", onkeydown: (event) => this.key(event) },
      table.title ? h("h1", {}, visible(table.title)) : null, table.note ? h("p", { class: "note-line" }, visible(table.note)) : null,
      this.bar.element, this.flipLine, h("div", { class: "body" }, h("div", { class: "side" }, this.count, this.list.element), this.detail));
    if (options.query) this.bar.filter.value = options.query;
    root.append(this.frame);
    this.filter(this.bar.filter.value);
    this.complete();
  }

  async complete() {
    try {
      await this.table.whole;
    } catch {
      this.bar.problem.textContent = "The tokens could not be unpacked: the file is damaged or incomplete.";
      return;
    }
    this.filter(this.bar.filter.value);
    this.table.index(() => !this.root.isConnected);
  }

  makeFields() {
    const { table } = this;
    const fields = new Map([...table.empty.map((name) => [name, { kind: "empty", get: () => null }]), ...table.columns]);
    fields.set("rationale", { kind: "text", get: (i) => table.rationale(i) });
    fields.set("text", { kind: "text", get: (i) => table.searchText(i), lower: (i) => table.searchText(i) });
    fields.set("tags", { kind: "list", get: (i) => this.annotations.of(i).tags });
    fields.set("note", { kind: "text", get: (i) => this.annotations.of(i).note });
    fields.set("selected", { kind: "bool", get: (i) => this.marked.has(i) });
    return fields;
  }

  // Filter, then order, then lines of the list.

  filterSoon(text) {
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.filter(text), 60);
  }

  filter(text) {
    try {
      this.test = parseQuery(text, this.fields);
      this.bar.problem.textContent = "";
      this.bar.filter.removeAttribute("aria-invalid");
    } catch (error) {
      this.bar.problem.textContent = error.message; // the list stays as it was
      this.bar.filter.setAttribute("aria-invalid", "true");
      if (this.rows) return;
    }
    this.query = text;
    this.options.onChange?.({ query: text });
    this.arrange();
  }

  arrange(stay = true) {
    const kept = stay ? this.row() : undefined;
    const source = this.flips ? this.flips.found[this.flips.kind] : Array.from({ length: this.table.count }, (_, i) => i);
    this.rows = this.rowsInOrder(source.filter(this.test));
    this.items = this.grouped ? this.problemItems() : this.rows.map((row) => ({ row }));
    const place = this.items.findIndex((item) => item.row === kept && kept !== undefined);
    this.active = place >= 0 ? place : this.items.findIndex((item) => item.row !== undefined);
    if (this.active < 0) this.active = 0;
    this.draw();
  }

  rowsInOrder(rows) {
    const { column, down } = this.sort;
    const sorted = [...rows].sort((a, b) => a - b);
    if (!column) return down ? sorted.reverse() : sorted;
    const { get } = this.fields.get(column);
    const key = new Map(sorted.map((i) => [i, get(i)]));
    const missing = (value) => value === null || value === undefined || value === "" || Number.isNaN(value);
    return sorted.sort((a, b) => {
      const [x, y] = [key.get(a), key.get(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y); // what has no value comes last, both ways
      const order = typeof x === "number" || typeof x === "boolean" ? x - y : String(x) < String(y) ? -1 : String(x) > String(y) ? 1 : 0;
      return down ? -order : order;
    });
  }

  problemItems() {
    const groups = new Map();
    for (const i of this.rows) {
      const problem = this.table.value(i, "id");
      if (!groups.has(problem)) groups.set(problem, []);
      groups.get(problem).push(i);
    }
    return [...groups].flatMap(([problem, rows]) => {
      const closed = this.closed.has(problem);
      return [{ problem, rows, closed }, ...(closed ? [] : rows.map((row) => ({ row })))];
    });
  }

  draw() {
    const { table, bar } = this;
    const [id, correct] = ["id", "correct"].map((name) => table.columns.get(name)?.get ?? (() => null));
    const judged = this.rows.filter((i) => correct(i) !== null);
    const right = judged.filter((i) => correct(i)).length;
    const problems = new Set(this.rows.map(id)).size;
    const shown = this.rows.length === table.count ? plural(table.count, "rationale") : `${this.rows.length.toLocaleString("en")} of ${plural(table.count, "rationale")}`;
    this.count.textContent = [
      shown, plural(problems, "problem"),
      judged.length ? `${percent(right / judged.length)} correct` : null, this.marked.size ? `${this.marked.size} selected` : null,
    ].filter(Boolean).join(" · ");
    bar.direction.textContent = this.sort.down ? "↓" : "↑";
    bar.order.value = this.sort.column ?? "";
    bar.group.setAttribute("aria-pressed", String(this.grouped));
    bar.flip.setAttribute("aria-pressed", String(Boolean(this.flips)));
    this.flipLine.replaceChildren(...(this.flips ? [flipBar(this)] : []));
    this.list.reveal(this.active);
    this.drawDetail();
  }

  drawDetail() {
    const focused = this.root.activeElement?.closest?.(".detail") ? this.root.activeElement : null;
    const again = focused && ["rationale", "tags", "note"].find((name) => focused.classList.contains(name));
    this.detail.replaceChildren(...drawDetail(this).filter(Boolean));
    if (again) this.detail.querySelector(`.${again}`)?.focus();
    else if (focused) this.list.element.focus({ preventScroll: true });
    for (const element of this.detail.querySelectorAll(".tex")) typeset(element);
  }

  row() {
    return this.items?.[this.active]?.row;
  }

  // What a person does.

  activate(place) {
    if (!this.items.length) return;
    this.active = Math.max(0, Math.min(this.items.length - 1, place));
    if (this.flips && this.row() !== undefined) this.partner = this.flips.found.partner.get(this.row());
    this.list.reveal(this.active);
    this.detail.scrollTop = 0;
    this.drawDetail();
  }

  show(row) {
    const place = this.items.findIndex((item) => item.row === row);
    if (place >= 0) return this.activate(place);
    this.closed.delete(this.table.value(row, "id"));
    this.arrange();
    return this.activate(this.items.findIndex((item) => item.row === row));
  }

  nextProblem(step) {
    const id = (place) => this.items[place] && (this.items[place].problem ?? this.table.value(this.items[place].row, "id"));
    let place = this.active;
    while (place >= 0 && place < this.items.length && id(place) === id(this.active)) place += step;
    if (place < 0 || place >= this.items.length) return;
    if (step < 0) while (place > 0 && id(place - 1) === id(place)) place -= 1;
    this.activate(this.items[place].problem !== undefined && !this.items[place].closed ? place + 1 : place);
  }

  toggleProblem() {
    const item = this.items[this.active];
    const problem = item?.problem ?? (item && this.grouped ? this.table.value(item.row, "id") : undefined);
    if (problem === undefined) return;
    if (!this.closed.delete(problem)) this.closed.add(problem);
    this.arrange();
    this.activate(this.items.findIndex((other) => other.problem === problem));
  }

  mark(rows = null) {
    const item = this.items[this.active];
    if (!rows && !item) return;
    const chosen = rows ?? (item.problem === undefined ? [item.row] : item.rows);
    const all = chosen.every((i) => this.marked.has(i));
    for (const i of chosen) if (all) this.marked.delete(i); else this.marked.add(i);
    this.options.onChange?.({ selection: [...this.marked].sort((a, b) => a - b) });
    this.draw();
  }

  setChannel(channel) {
    this.channel = channel;
    this.comparing = false;
    this.drawDetail();
  }

  compare(on = !this.comparing) {
    this.comparing = on;
    this.drawDetail();
  }

  compareWith(row) {
    this.partner = row;
    this.drawDetail();
    this.detail.querySelector(".side-title select")?.focus();
  }

  stepPartner(step) {
    const row = this.row();
    if (row === undefined) return;
    const others = this.table.problems.get(this.table.value(row, "id")).filter((i) => i !== row);
    this.partner = others[(others.indexOf(this.partner) + step + others.length) % others.length];
    this.compare(true);
  }

  sortBy(column) {
    this.sort = { column, down: column !== null && this.fields.get(column).kind === "number" };
    this.arrange(false); // to see what comes first
  }

  reverse() {
    this.sort = { ...this.sort, down: !this.sort.down };
    this.arrange(false);
  }

  group() {
    this.grouped = !this.grouped;
    this.arrange();
  }

  flip() {
    this.flips = this.flips ? null : firstFlips(this);
    this.setFlips({});
  }

  setFlips(change) {
    if (this.flips) this.flips = findFlips(this, { ...this.flips, ...change });
    this.comparing = Boolean(this.flips);
    this.arrange();
    this.activate(this.active);
  }

  annotate(i, annotation) {
    this.annotations.set(i, annotation);
  }

  annotated(records) {
    if (this.options.remember && !stored.write(this.table.key, records)) {
      this.bar.problem.textContent = "The browser keeps nothing here: download tags and notes (Export) before you leave.";
    }
    this.options.onChange?.({ annotations: records });
    this.list.draw();
  }

  // From Python.
  update({ query, annotations, selection }) {
    if (selection !== undefined) this.marked = new Set(selection);
    if (annotations !== undefined && JSON.stringify(annotations) !== JSON.stringify(this.annotations.list())) this.annotations.load(annotations);
    else if (query === undefined && selection === undefined) return; // the echo of what was made here
    if (query !== undefined && query !== this.query) {
      this.bar.filter.value = query;
      this.filter(query);
    } else this.draw();
  }

  key(event) {
    const typing = event.target.matches("input:not([type=radio]), textarea, select");
    if (event.key === "Escape" && typing && !event.target.closest("dialog")) {
      if (event.target === this.bar.filter && this.bar.filter.value) {
        this.bar.filter.value = "";
        this.filter("");
      } else this.list.element.focus();
      event.preventDefault();
      return;
    }
    if (event.key === "Enter" && event.target === this.bar.filter) return this.list.element.focus();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("dialog")) return;
    const action = this.keys(event)[event.key];
    if (!action || (["Enter", " "].includes(event.key) && event.target.matches("button"))) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  keys() {
    const step = (by) => () => this.activate(this.active + by);
    const channels = [null, ...available(this.table)];
    const keys = {
      j: step(1), ArrowDown: step(1), k: step(-1), ArrowUp: step(-1), PageDown: step(this.list.page()), PageUp: step(-this.list.page()),
      Home: step(-Infinity), End: step(Infinity), l: () => this.nextProblem(1), h: () => this.nextProblem(-1), Enter: () => this.toggleProblem(),
      "/": () => this.bar.filter.select(), s: () => this.bar.order.focus(), r: () => this.reverse(), g: () => this.group(), i: () => this.detail.querySelector(".rationale")?.focus(),
      d: () => this.compare(), "]": () => this.stepPartner(1), "[": () => this.stepPartner(-1), f: () => this.flip(), x: () => this.mark(), " ": () => this.mark(),
      a: () => this.mark(this.rows), t: () => this.detail.querySelector(".tags")?.focus(), n: () => this.detail.querySelector(".note")?.focus(),
      p: () => openRates(this), e: () => openExport(this), "?": () => openKeys(this),
    };
    for (const channel of channels) keys[channel ? channel.key : "0"] = () => this.setChannel(channel);
    return keys;
  }
}

// Light or dark: JupyterLab says so on the body, other pages by the browser's preference.
function followTheme(host) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const set = () => {
    const told = document.body.dataset.jpThemeLight;
    host.dataset.theme = told === undefined ? (dark.matches ? "dark" : "light") : told === "true" ? "light" : "dark";
  };
  dark.addEventListener("change", set);
  const observer = new MutationObserver(set);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  set();
  return () => (observer.disconnect(), dark.removeEventListener("change", set));
}

export async function mount(element, data, options = {}) {
  const host = h("div", { class: "brite-rationales", "data-lm-suppress-shortcuts": "true" });
  const root = host.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(data.css);
  root.adoptedStyleSheets = [sheet];
  const unfollow = followTheme(host);
  try {
    const table = await openTable(data.blobs);
    element.replaceChildren(host);
    const viewer = new Viewer(root, table, options);
    return { update: (change) => viewer.update(change), destroy: () => (unfollow(), host.remove()), whole: table.whole, viewer };
  } catch (error) {
    element.replaceChildren(host);
    root.append(h("p", { class: "frame failed", role: "alert" }, `The rationales cannot be shown: ${error.message}`));
    return { update() {}, destroy: () => (unfollow(), host.remove()), whole: Promise.resolve() };
  }
}

// In a page: the blobs are script elements beside the place where the browser goes.
export function mountAll() {
  for (const place of document.querySelectorAll("[data-brite-rationales]:not([data-mounted])")) {
    place.dataset.mounted = "true";
    const blobs = {};
    let css = "";
    for (const part of place.querySelectorAll("script[data-blob]")) {
      if (part.dataset.blob === "css") css = new TextDecoder().decode(Uint8Array.from(atob(part.textContent), (c) => c.charCodeAt(0)));
      else blobs[part.dataset.blob] = part.textContent;
      part.remove();
    }
    mount(place, { blobs, css }, { remember: true });
  }
}

export default {
  async render({ model, el }) {
    const blobs = Object.fromEntries(Object.entries(model.get("_blobs")).map(([name, view]) => [name, new Uint8Array(view.buffer, view.byteOffset, view.byteLength)]));
    const onChange = (change) => {
      for (const [name, value] of Object.entries(change)) model.set(name, value);
      model.save_changes();
    };
    const options = { query: model.get("query"), annotations: model.get("annotations"), onChange };
    const mounted = await mount(el, { blobs, css: model.get("_style") }, options);
    const names = ["query", "annotations", "selection"];
    for (const name of names) model.on(`change:${name}`, () => mounted.update({ [name]: model.get(name) }));
    mounted.update({ selection: model.get("selection") });
    return () => mounted.destroy();
  },
};
