// The lines above the list: filter, order, flips; and the dialogs for keys, pass@k and export.

import { TITLES, flips, passRates, sourceName } from "./data.js";
import { h, percent, plural, short, visible } from "./dom.js";
import { FORMATS, download, exported } from "./export.js";

const button = (title, key, action, more = {}) => h("button", { type: "button", title: `key ${key}`, onclick: action, ...more }, title);

export function toolbar(view) {
  const filter = h("input", {
    type: "search", class: "filter", "aria-label": "Filter", placeholder: 'correct:false len>300 text:"therefore"', spellcheck: "false", autocomplete: "off",
    "aria-describedby": `${view.name}-problem`, oninput: () => view.filterSoon(filter.value),
  });
  const problem = h("div", { class: "problem-line", id: `${view.name}-problem`, role: "alert" });
  const order = h("select", { "aria-label": "Sort by", onchange: () => view.sortBy(order.value || null) },
    h("option", { value: "" }, "table order"), [...view.fields].flatMap(([name, { kind }]) => (kind === "empty" || ["text", "rationale"].includes(name) ? [] : [name])).sort().map((name) => h("option", { value: name }, short(Object.hasOwn(TITLES, name) && TITLES[name] !== name ? `${name}: ${TITLES[name]}` : name))));
  const direction = button("↑", "r", () => view.reverse(), { "aria-label": "Reverse the order" });
  const group = button("Group", "g", () => view.group(), { "aria-pressed": "false" });
  const flip = button("Flips", "f", () => view.flip(), { "aria-pressed": "false" });
  const several = new Set(Array.from({ length: view.table.count }, (_, i) => sourceName(view.table, i))).size > 1;
  const element = h("div", { class: "toolbar", role: "toolbar", "aria-label": "Rationales" },
    h("div", { class: "line-1" }, filter, button("Keys", "?", () => openKeys(view), { "aria-label": "Keys and filter language" })), problem,
    h("div", { class: "line-2" }, h("label", {}, "Sort ", order), direction, group, several ? flip : null,
      button("pass@k", "p", () => openRates(view)), button("Export", "e", () => openExport(view))));
  return { element, filter, problem, order, direction, group, flip };
}

// Which verdicts changed between two sources: problems won and lost.
export function flipBar(view) {
  const sources = [...new Set(Array.from({ length: view.table.count }, (_, i) => sourceName(view.table, i)))];
  const { from, to, kind, found } = view.flips;
  const choice = (title, chosen, set) => h("select", { "aria-label": title, onchange: (event) => set(event.target.value) },
    sources.map((name) => h("option", { value: name, selected: name === chosen }, short(name))));
  const pick = (name, title) => h("button", { type: "button", "aria-pressed": String(kind === name), onclick: () => view.setFlips({ kind: name }) }, `${title} (${found[name].length})`);
  return h("div", { class: "flips", role: "group", "aria-label": "Flips" },
    h("label", {}, "from ", choice("from", from, (name) => view.setFlips({ from: name }))),
    h("label", {}, "to ", choice("to", to, (name) => view.setFlips({ to: name }))),
    pick("fixed", "wrong → right"), pick("broken", "right → wrong"), h("span", { class: "muted small" }, `of ${plural(found.pairs, "pair")} of equal problem and sample`));
}

export function firstFlips(view) {
  const sources = [...new Set(Array.from({ length: view.table.count }, (_, i) => sourceName(view.table, i)))];
  return sources.length > 1 ? findFlips(view, { from: sources[0], to: sources.at(-1), kind: "fixed" }) : null;
}

export const findFlips = (view, chosen) => ({ ...chosen, found: flips(view.table, chosen.from, chosen.to) });

function openDialog(view, title, ...content) {
  const dialog = h("dialog", { "aria-label": title, onclose: () => closed() },
    h("div", { class: "dialog-title" }, h("h2", {}, title), h("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "✕")), content);
  const before = view.root.activeElement;
  const closed = () => {
    dialog.remove(); // some time after it was closed: what has been focused since keeps the focus
    if (!view.root.activeElement) (before ?? view.list.element).focus();
  };
  view.frame.append(dialog);
  dialog.showModal();
  return dialog;
}

const KEYS = [
  ["j k ↓ ↑", "next, previous line"], ["h l", "previous, next problem"], ["Home End PageUp PageDown", "first, last, a page up, a page down"],
  ["Enter", "open or close a problem"], ["/", "filter; Esc clears it, then returns to the list"], ["s r", "choose the order; reverse it"], ["g", "group by problem"],
  ["0 – 7", "text, log P_ψ, log P_θ, log-ratio, KL, reward, advantage, value"], ["i", "to the tokens; ← → move between them"],
  ["d", "compare with another rationale of the problem"], ["[ ]", "compare with the previous, next one"], ["f", "flips: verdicts that changed between two sources"],
  ["x Space", "select; Ctrl+click too"], ["a", "select all shown, or none"], ["t n", "tags; note"], ["p", "pass@k of what is shown"], ["e", "export"], ["?", "this list"],
];
const LANGUAGE = [
  ["correct:false", "true, false or null"], ["len>300 kl<=2 len:100..300", "numbers: > >= < <= = != and ranges"], ["source:psi,brite*", "one of several; * is anything"],
  ['text:"therefore" "so far"', "anywhere in question, rationale, answer"], ["-tag:done", "minus: not"], ["is:unparsed", "correct, wrong, unparsed, unfinished, unjudged"], ["selected:true", "what is selected"],
];

export function openKeys(view) {
  const table = (rows, head) => h("table", {}, h("caption", {}, head), h("tbody", {}, rows.map(([keys, meaning]) => h("tr", {}, h("th", { scope: "row" }, h("kbd", {}, keys)), h("td", {}, meaning)))));
  const columns = [...view.fields].flatMap(([name, { kind }]) => (kind === "empty" ? [] : [name])).sort().join(", ");
  openDialog(view, "Keys and filter language", h("div", { class: "keys" }, table(KEYS, "Keys"), h("div", {}, table(LANGUAGE, "Filter: all terms must hold"),
    h("p", { class: "muted small" }, `Columns: ${visible(columns)}. Short names: len, answer, pred, tag, is. psi, theta, ratio and kl are sums over the tokens of a rationale; elbo = logp_answer − ratio.`))));
}

export function openRates(view) {
  const rates = passRates(view.table, view.rows);
  const all = [...new Set(rates.flatMap((source) => source.rates.map(({ k }) => k)))].sort((a, b) => a - b);
  const cell = (found, problems) => h("td", {}, found ? [percent(found.rate), found.problems < problems ? h("span", { class: "muted small" }, ` (${found.problems})`) : null] : "–");
  openDialog(view, "pass@k of what is shown",
    rates.length
      ? h("table", { class: "rates" }, h("thead", {}, h("tr", {}, ["source", "problems", "rationales", ...all.map((k) => `pass@${k}`)].map((title) => h("th", { scope: "col" }, title)))),
          h("tbody", {}, rates.map((source) => h("tr", {}, h("th", { scope: "row" }, short(source.source)), h("td", {}, source.problems), h("td", {}, source.samples),
            all.map((k) => cell(source.rates.find((rate) => rate.k === k), source.problems))))))
      : h("p", {}, "Nothing that is shown has been judged."),
    h("p", { class: "muted small" }, "Unbiased: 1 − C(n−c, k)/C(n, k), mean over problems with at least k judged rationales (their number in brackets where it is not all). A filter on the verdict changes n and c."));
}

export function openExport(view) {
  const rows = view.marked.size ? view.rowsInOrder([...view.marked]) : view.rows;
  const of = view.marked.size ? "the selection" : "all that is shown (nothing is selected)";
  const summary = h("p", { role: "status" });
  const save = h("button", { type: "button", class: "main", onclick: () => download(result.text, FORMATS[chosen].file) }, "Download");
  const copy = h("button", { type: "button", onclick: async () => (summary.textContent = (await copied(result.text)) ? "Copied." : "The browser does not allow copying; use Download.") }, "Copy");
  let chosen, result;
  const choose = (format) => {
    chosen = format;
    result = exported(format, view.table, rows, view.annotations);
    summary.textContent = `${result.summary}, ${FORMATS[format].file}`;
    save.disabled = copy.disabled = !result.count;
  };
  const choices = Object.entries(FORMATS).map(([format, { title, about }], at) =>
    h("label", { class: "choice" }, h("input", { type: "radio", name: `${view.name}-format`, value: format, checked: at === 0, onchange: () => choose(format) }), h("span", {}, h("strong", {}, title), h("br"), h("span", { class: "muted small" }, about))));
  if (!view.table.ready) return openDialog(view, "Export", h("p", {}, "The table is still being unpacked; try again in a moment."));
  choose("jsonl");
  return openDialog(view, "Export", h("p", {}, `${plural(rows.length, "rationale")}: ${of}.`), h("fieldset", {}, h("legend", {}, "Format"), choices), summary, h("div", { class: "actions" }, save, copy));
}

const copied = (text) => navigator.clipboard?.writeText(text).then(() => true, () => false) ?? false;
