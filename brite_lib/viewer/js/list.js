// The list of rationales: only the lines in sight exist as elements, so twenty thousand cost as much as twenty.

import { passAtK, sourceName } from "./data.js";
import { h, number, percent, short, visible } from "./dom.js";

const LINE = 48; // pixels, as in viewer.css
const SPARE = 6; // lines drawn above and below those in sight

export const BADGES = {
  correct: "✓ correct", wrong: "✗ wrong", unparsed: "∅ unparsed", unfinished: "… unfinished", unjudged: "? not judged",
};

export const badge = (status) => h("span", { class: `badge ${status}` }, BADGES[status]);

export class RationaleList {
  // view: the viewer; reads view.table, .items, .active, .marked, .sort and calls view.activate(place, …).
  constructor(view) {
    this.view = view;
    this.inner = h("div", { class: "inner", role: "presentation" });
    this.element = h("div", {
      class: "list", role: "listbox", tabindex: "0", "aria-label": "Rationales", "aria-multiselectable": "true",
      onscroll: () => this.schedule(), onclick: (event) => this.clicked(event),
    }, this.inner);
    new ResizeObserver(() => this.draw()).observe(this.element); // before the frame is painted: no moment with lines missing
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  draw() {
    const { items, active } = this.view;
    const first = Math.max(0, Math.floor(this.element.scrollTop / LINE) - SPARE);
    const last = Math.min(items.length, Math.ceil((this.element.scrollTop + this.element.clientHeight) / LINE) + SPARE);
    const lines = [];
    for (let place = first; place < last; place++) {
      const line = items[place].problem === undefined ? this.row(items[place].row) : this.problem(items[place]);
      line.id = `${this.view.name}-${place}`;
      line.dataset.place = place;
      line.style.top = `${place * LINE}px`;
      line.setAttribute("aria-posinset", place + 1);
      line.setAttribute("aria-setsize", items.length);
      line.classList.toggle("active", place === active);
      lines.push(line);
    }
    this.inner.replaceChildren(...lines);
    const shown = active >= first && active < last;
    if (shown) this.element.setAttribute("aria-activedescendant", `${this.view.name}-${active}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  row(i) {
    const { table, marked, sort, annotations } = this.view;
    const column = sort.column ?? "num_tokens";
    const value = this.view.fields.get(column)?.get(i);
    const told = typeof value === "number" ? `${column === "num_tokens" ? "" : `${column} `}${number(value)}${column === "num_tokens" ? " tokens" : ""}` : "";
    const { tags, note } = annotations.of(i);
    const problem = this.view.grouped || table.problems.size < 2 ? "" : ` · ${short(table.value(i, "id"))}`;
    return h("div", { role: "option", class: "line row", "aria-selected": String(marked.has(i)) },
      h("div", { class: "top" }, badge(table.status(i)), h("span", { class: "label" }, short(table.label(i)) + problem),
        tags.map((tag) => h("span", { class: "tag" }, short(tag, 20))), note ? h("span", { class: "tag", title: short(note, 300) }, "note") : null,
        h("span", { class: "told" }, told)),
      h("div", { class: "preview", dir: "auto" }, preview(table.ready || table.textPlaces.others[i] !== undefined ? table.rationale(i) : table.value(i, "question"))));
  }

  problem({ problem, rows, closed }) {
    const { table } = this.view;
    const judged = rows.filter((i) => table.value(i, "correct") !== null);
    const right = judged.filter((i) => table.value(i, "correct")).length;
    const k = judged.length >= 4 ? 4 : 2;
    const alike = new Set(judged.map((i) => sourceName(table, i))).size === 1; // pass@k of a mixture of models is no model's
    const rate = alike && judged.length >= k ? h("span", { class: "rate" }, ` · pass@${k} ${percent(passAtK(judged.length, right, k))}`) : null;
    const told = judged.length ? [`${right} of ${judged.length} correct`, rate] : `${rows.length} not judged`;
    return h("div", { role: "option", class: "line problem", "aria-selected": "false" },
      h("div", { class: "top" }, h("span", { "aria-hidden": "true" }, closed ? "▸" : "▾"), h("span", { class: "label" }, short(problem)),
        h("span", { class: "spoken" }, closed ? "closed" : "open"), h("span", { class: "told" }, told)),
      h("div", { class: "preview", dir: "auto" }, preview(table.value(rows[0], "question"))));
  }

  clicked(event) {
    const line = event.target.closest(".line");
    if (!line) return;
    const place = Number(line.dataset.place);
    const again = place === this.view.active;
    this.view.activate(place);
    if (event.ctrlKey || event.metaKey || event.shiftKey) this.view.mark();
    else if (again && line.classList.contains("problem")) this.view.toggleProblem();
    this.element.focus({ preventScroll: true });
  }

  reveal(place) {
    this.inner.style.height = `${this.view.items.length * LINE}px`; // what is scrolled beyond the end comes back
    const { scrollTop, clientHeight } = this.element;
    if (place * LINE < scrollTop) this.element.scrollTop = place * LINE;
    else if ((place + 1) * LINE > scrollTop + clientHeight) this.element.scrollTop = (place + 1) * LINE - clientHeight;
    this.draw();
  }

  page() {
    return Math.max(1, Math.floor(this.element.clientHeight / LINE) - 1);
  }
}

function preview(text) {
  return visible((text ?? "").slice(0, 300).replace(/\s+/g, " "));
}
