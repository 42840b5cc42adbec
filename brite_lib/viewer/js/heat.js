// Colours for tokens: which number, on which scale.

import { h, number, visibleToken } from "./dom.js";

// Blue and orange are told apart by all common kinds of colour blindness; strength is lightness of the mixture with the background.
const BLUE = "33, 102, 172", ORANGE = "203, 96, 4";

export const CHANNELS = [
  { key: "1", name: "psi", title: "log P_ψ", needs: ["psi"], kind: "low", about: "log-probability under ψ; the stronger, the more surprising" },
  { key: "2", name: "theta", title: "log P_θ", needs: ["theta"], kind: "low", about: "log-probability under θ; the stronger, the more surprising" },
  { key: "3", name: "ratio", title: "log-ratio", needs: ["psi", "theta"], kind: "both", about: "log P_ψ − log P_θ; blue: ψ likes it more" },
  { key: "4", name: "kl", title: "KL", needs: ["psi", "theta"], kind: "high", about: "KL(ψ‖θ) at this token, k3 estimate" },
  { key: "5", name: "reward", title: "reward", needs: ["psi", "theta"], kind: "both", about: "log P_θ − log P_ψ, on the last token also log P(y*|x,z)" },
  { key: "6", name: "advantage", title: "advantage", needs: ["advantage"], kind: "both", about: "advantage as stored; blue: better than the baseline" },
  { key: "7", name: "value", title: "value", needs: ["value"], kind: "both", about: "the critic's value as stored" },
];

const PROBABILITIES = { psi: "P_ψ", theta: "P_θ" };

export function available(table) {
  return CHANNELS.filter(({ needs }) => needs.every((name) => name in table.channels));
}

// The number of token t (of all tokens) of row i on a channel, NaN where there is none.
export function tokenValue(table, i, t, name) {
  if (name in table.channels) return table.stored(name, t);
  const ratio = table.stored("psi", t) - table.stored("theta", t);
  if (name === "ratio") return ratio;
  if (name === "kl") return Math.exp(-ratio) - 1 + ratio;
  if (t !== table.offsets[i + 1] - 1) return -ratio;
  const answer = table.value(i, "logp_answer");
  return answer === null ? NaN : answer - ratio;
}

// Where the scale ends: the 99th percentile of |value| over the table, rounded up to 1, 2 or 5 times a power of ten.
export function scaleEnd(table, name) {
  table.scaleEnds ??= {};
  if (table.scaleEnds[name]) return table.scaleEnds[name];
  const sizes = [];
  const rows = Math.max(1, Math.floor(table.count / 400));
  for (let i = 0; i < table.count; i += rows) {
    for (let t = table.offsets[i]; t < table.offsets[i + 1]; t++) sizes.push(Math.abs(tokenValue(table, i, t, name)));
  }
  const finite = sizes.filter(Number.isFinite).sort((a, b) => a - b);
  const size = finite[Math.floor(0.99 * (finite.length - 1))] || 1;
  const power = 10 ** Math.floor(Math.log10(size));
  return (table.scaleEnds[name] = [1, 2, 5, 10].find((step) => step * power >= size * 0.999) * power);
}

export function colour(value, end, kind) {
  if (Number.isNaN(value)) return "";
  const strength = 0.62 * Math.min(1, Math.abs(value) / end);
  return `rgba(${value > 0 && kind === "both" ? BLUE : ORANGE}, ${strength.toFixed(3)})`;
}

// All tokens of a row as spans; on a channel with their colours.
export function tokenSpans(table, i, channel) {
  const end = channel && scaleEnd(table, channel.name);
  return table.tokens(i).map((text, place) => {
    const span = h("span", { class: "token", "data-place": place }, visibleToken(text));
    if (channel) {
      const value = tokenValue(table, i, table.offsets[i] + place, channel.name);
      if (Number.isNaN(value)) span.classList.add("blank");
      else span.style.backgroundColor = colour(value, end, channel.kind);
    }
    return span;
  });
}

export function legend(table, channel) {
  const end = scaleEnd(table, channel.name);
  const stops = { low: [-end, 0], high: [0, end], both: [-end, 0, end] }[channel.kind];
  const bar = h("span", { class: "bar" });
  bar.style.background = `linear-gradient(to right, ${stops.map((stop) => colour(stop, end, channel.kind)).join(", ")})`;
  const labels = stops.map((stop, at) => (at === 0 && stop < 0 ? "≤ " : at === stops.length - 1 && stop > 0 ? "≥ " : "") + number(stop, 2));
  const errors = channel.needs.map((name) => table.channels[name].error);
  const stored = `exact to ±${number(errors.reduce((sum, error) => sum + error, 0), 2)}`;
  return h("div", { class: "legend" }, h("span", { class: "scale" }, bar, h("span", { class: "ends" }, labels.map((label) => h("span", {}, label)))),
    h("span", {}, `${channel.about}; ${stored}`));
}

// The card of one token: every number that there is.
export function tokenCard(table, i, place) {
  const t = table.offsets[i] + place;
  const code = table.tokenCodes[t];
  const id = table.tokenIds ? `id ${table.tokenIds[code]}, ` : "";
  const numbers = available(table).flatMap(({ name, title }) => {
    const value = tokenValue(table, i, t, name);
    return name in PROBABILITIES ? [[title, value], [PROBABILITIES[name], Math.exp(value)]] : [[title, value]];
  });
  const shown = visibleToken(table.vocabulary[code]);
  return [
    h("div", { class: "card-title" }, h("code", {}, shown.length > 60 ? `${shown.slice(0, 60)}…` : shown), h("span", {}, `${id}token ${place + 1} of ${table.tokenCount(i)}`)),
    h("dl", {}, numbers.map(([title, value]) => [h("dt", {}, title), h("dd", {}, number(value))])),
  ];
}
