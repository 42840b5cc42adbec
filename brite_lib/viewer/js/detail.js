// One rationale: question, answers, tokens with their heat, tags and note; or two rationales, word by word.

import { TITLES, passRates } from "./data.js";
import { wordDiff } from "./diff.js";
import { h, number, percent, plural, short, visible } from "./dom.js";
import { available, legend, tokenCard, tokenSpans } from "./heat.js";
import { BADGES, badge } from "./list.js";

const MOST_TOKENS = 20000; // drawn at once; more only when asked for

export function drawDetail(view) {
  const item = view.items[view.active];
  if (!item) return [h("p", { class: "empty" }, view.table.count ? "No rationale fits the filter." : "There is no rationale.")];
  if (item.problem !== undefined) return problemDetail(view, item);
  const i = item.row;
  return [
    heading(view, i),
    question(view, i),
    answers(view, i),
    view.comparing ? comparison(view, i) : [channelSwitch(view), rationale(view, i)],
    numbers(view, i),
    annotationForm(view, i),
  ].flat(Infinity);
}

function heading(view, i) {
  const partner = view.table.problems.get(view.table.value(i, "id")).length > 1;
  return h("header", { class: "heading" }, h("h2", {}, short(view.table.label(i))), badge(view.table.status(i)),
    h("span", { class: "muted" }, short(view.table.value(i, "id"), 200)),
    h("span", { class: "spring" }),
    h("button", { type: "button", "aria-pressed": String(view.marked.has(i)), title: "key x", onclick: () => view.mark() }, "Select"),
    partner ? h("button", { type: "button", "aria-pressed": String(view.comparing), title: "key d", onclick: () => view.compare() }, "Compare") : null);
}

function question(view, i) {
  return h("p", { class: "question tex", dir: "auto" }, visible(view.table.value(i, "question")));
}

// The sampled answer with the part that was read as the prediction, beside the right one.
function answers(view, i) {
  const { table } = view;
  const [text, prediction] = [table.value(i, "answer_text"), table.value(i, "prediction")];
  const at = text !== null && prediction !== null ? text.lastIndexOf(prediction) : -1;
  const written = at < 0 ? visible(text ?? "") : [visible(text.slice(0, at)), h("mark", {}, visible(prediction)), visible(text.slice(at + prediction.length))];
  return h("dl", { class: "answers" },
    h("div", {}, h("dt", {}, "right answer"), h("dd", {}, h("code", { dir: "auto" }, visible(table.value(i, "gold"))))),
    table.predicts && h("div", {}, h("dt", {}, "predicted"), h("dd", {}, prediction === null ? h("span", { class: "muted" }, "none") : h("code", { dir: "auto" }, visible(prediction)))),
    text === null ? null : h("div", { class: "long" }, h("dt", {}, "answer as sampled"), h("dd", { dir: "auto" }, written)));
}

function channelSwitch(view) {
  const channels = view.table.tokenCount(view.items[view.active].row) ? available(view.table) : [];
  if (!channels.length) return null;
  const button = (channel, title, key) =>
    h("button", { type: "button", role: "radio", "aria-checked": String(view.channel === channel), tabindex: view.channel === channel ? "0" : "-1", title: `key ${key}`, onclick: () => view.setChannel(channel) }, title);
  return h("div", { class: "switch", role: "radiogroup", "aria-label": "Colour of the tokens", onkeydown: (event) => moveInGroup(event) },
    button(null, "text", "0"), channels.map((channel) => button(channel, channel.title, channel.key)));
}

function moveInGroup(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  const next = buttons[(buttons.indexOf(event.target) + step + buttons.length) % buttons.length];
  event.stopPropagation();
  event.preventDefault();
  const root = event.currentTarget.getRootNode();
  next.click();
  root.querySelector('.switch [aria-checked="true"]')?.focus();
}

function rationale(view, i) {
  const { table, channel } = view;
  if (!table.ready && table.textPlaces.others[i] === undefined) return h("p", { class: "muted" }, "unpacking …");
  if (!channel || !table.tokenCount(i)) {
    const text = visible(table.rationale(i)) || h("span", { class: "muted" }, "empty");
    return h("div", { class: "rationale plain tex", dir: "auto", tabindex: "0", role: "group", "aria-label": "Rationale" }, text);
  }
  const spans = tokenSpans(table, i, channel);
  const text = h("div", { class: "rationale", tabindex: "0", role: "group", "aria-label": "Tokens of the rationale; arrow keys move from token to token" }, spans.slice(0, MOST_TOKENS));
  if (spans.length > MOST_TOKENS) {
    text.append(h("button", { type: "button", onclick: (event) => event.target.replaceWith(...spans.slice(MOST_TOKENS)) }, `${spans.length - MOST_TOKENS} more tokens`));
  }
  const card = h("div", { class: "card", role: "status", hidden: true });
  watchTokens(text, card, (place) => tokenCard(table, i, place));
  return [legend(table, channel), h("div", { class: "with-card" }, text, card)];
}

// A card for the token under the pointer, or under the cursor that the arrow keys move.
function watchTokens(text, card, cardOf) {
  let cursor = null;
  const show = (span) => {
    cursor?.classList.remove("cursor");
    cursor = span;
    card.hidden = !span;
    if (!span) return;
    span.classList.add("cursor");
    card.replaceChildren(...cardOf(Number(span.dataset.place)).filter(Boolean));
    const [box, frame] = [span.getClientRects()[0] ?? span.getBoundingClientRect(), text.parentNode.getBoundingClientRect()];
    card.style.left = `${Math.max(0, Math.min(box.left - frame.left, frame.width - card.offsetWidth))}px`;
    card.style.top = `${box.bottom - frame.top + 6}px`;
  };
  text.addEventListener("pointerover", (event) => show(event.target.closest(".token")));
  text.addEventListener("pointerleave", () => show(null));
  text.addEventListener("blur", () => show(null));
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape" && cursor) {
      show(null);
      event.stopPropagation();
    }
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const tokens = text.querySelectorAll(".token");
    const next = cursor ? tokens[Number(cursor.dataset.place) + step] : tokens[0];
    if (next) show(next);
    next?.scrollIntoView({ block: "nearest" });
  });
}

function comparison(view, i) {
  const { table } = view;
  const siblings = table.problems.get(table.value(i, "id")).filter((row) => row !== i);
  const other = siblings.includes(view.partner) ? view.partner : (siblings.find((row) => table.value(row, "source") !== table.value(i, "source")) ?? siblings[0]);
  if (other === undefined) return [h("p", { class: "muted" }, "This problem has one rationale only, there is nothing to compare it with.")];
  view.partner = other;
  if (!table.ready) return [h("p", { class: "muted" }, "unpacking …")];
  const choice = h("select", { "aria-label": "Compare with", onchange: (event) => view.compareWith(Number(event.target.value)) },
    siblings.map((row) => h("option", { value: row, selected: row === other }, `${short(table.label(row))} · ${BADGES[table.status(row)]}`)));
  const parts = wordDiff(table.rationale(other), table.rationale(i));
  const side = (kind, element) => h("div", { class: "rationale plain", dir: "auto", tabindex: "0", role: "group", "aria-label": kind === "a" ? "Compared with" : "This rationale" },
    parts.filter((part) => part.kind === "same" || part.kind === kind).map((part) => (part.kind === "same" ? visible(part.text) : h(element, {}, visible(part.text)))));
  const shared = parts.filter(({ kind }) => kind === "same").reduce((sum, { text }) => sum + text.length, 0);
  const whole = parts.reduce((sum, { text }) => sum + text.length, 0);
  return [h("div", { class: "sides" },
    h("section", {}, h("div", { class: "side-title" }, choice), side("a", "del"), predicted(table, other)),
    h("section", {}, h("div", { class: "side-title" }, h("strong", {}, short(table.label(i))), badge(table.status(i))), side("b", "ins"), predicted(table, i))),
    h("p", { class: "muted small" }, `${percent(whole ? shared / whole : 1)} of the characters are in both`)];
}

const predicted = (table, i) => table.predicts && h("p", { class: "small" }, "predicted ", h("code", {}, visible(table.value(i, "prediction") ?? "none")));

function numbers(view, i) {
  const known = new Set([...Object.keys(TITLES), "round", "sample", "seed"]);
  const shown = Object.entries(TITLES).map(([name, title]) => [title, view.table.value(i, name)]);
  for (const [name, { kind, get }] of view.table.columns) if (kind === "number" && !known.has(name)) shown.push([name, get(i)]);
  return h("dl", { class: "numbers" }, shown.filter(([, value]) => value !== null).map(([title, value]) => h("div", {}, h("dt", {}, visible(title)), h("dd", {}, number(value)))));
}

function annotationForm(view, i) {
  const { tags, note } = view.annotations.of(i);
  const tagBox = h("input", { type: "text", class: "tags", value: tags.join(", "), list: `${view.name}-tags`, placeholder: "comma-separated", autocomplete: "off", spellcheck: "false" });
  const noteBox = h("textarea", { class: "note", rows: "2" }, note);
  const save = () => view.annotate(i, { tags: [...new Set(tagBox.value.split(",").map((tag) => tag.trim()).filter(Boolean))], note: noteBox.value.trim() });
  for (const box of [tagBox, noteBox]) {
    box.addEventListener("change", save);
    box.addEventListener("blur", save);
  }
  return h("div", { class: "annotate" }, h("label", {}, "Tags", tagBox), h("label", {}, "Note", noteBox),
    h("datalist", { id: `${view.name}-tags` }, view.annotations.allTags().map((tag) => h("option", { value: tag }))));
}

// All rationales of a problem at a glance.
function problemDetail(view, { problem, rows }) {
  const { table } = view;
  const rates = passRates(table, rows).map(({ source, samples, rates }) => h("p", {}, short(source), h("span", { class: "muted" }, ` (${samples})`),
    rates.slice(0, 6).map(({ k, rate }) => ` · pass@${k} ${percent(rate)}`)));
  const votes = new Map();
  for (const i of rows) votes.set(table.value(i, "prediction"), [...(votes.get(table.value(i, "prediction")) ?? []), i]);
  return [
    h("header", { class: "heading" }, h("h2", {}, short(problem)), h("span", { class: "muted" }, plural(rows.length, "rationale"))),
    question(view, rows[0]),
    h("p", {}, "right answer ", h("code", {}, visible(table.value(rows[0], "gold")))),
    rates.length ? h("div", {}, rates) : null,
    h("table", { class: "votes" }, h("thead", {}, h("tr", {}, ["predicted", "verdict", "rationales"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, [...votes].sort((a, b) => b[1].length - a[1].length).map(([prediction, voters]) =>
        h("tr", {}, h("td", {}, prediction === null ? h("span", { class: "muted" }, "none") : h("code", {}, short(prediction, 200))), h("td", {}, badge(table.status(voters[0]))),
          h("td", {}, voters.slice(0, 40).map((i) => h("button", { type: "button", class: "link", onclick: () => view.show(i) }, short(table.label(i)))),
            voters.length > 40 ? ` and ${voters.length - 40} more` : ""))))),
  ];
}
