// The packed table (brite_lib/viewer/pack.py), unpacked in the page. Channels stay small integers; numbers are made when shown.

const NEEDED = ["rows", "vocab", "tokens", "ids"];

// What a person reads for a column of numbers; the filter calls it by its name.
export const TITLES = {
  num_tokens: "tokens", psi: "Σ log P_ψ", theta: "Σ log P_θ", ratio: "Σ log-ratio", kl: "Σ KL", logp_answer: "log P(y*|x,z)", elbo: "ELBO, one sample", reward: "reward",
};

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

async function gunzip(blob) {
  const bytes = typeof blob === "string" ? fromBase64(blob.trim()) : blob;
  if (!bytes.byteLength) return new ArrayBuffer(0);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function gunzipJson(blob) {
  return JSON.parse(new TextDecoder().decode(await gunzip(blob)));
}

// blobs: { name: base64 text | bytes }. Resolves as soon as rows can be listed; `table.whole` when tokens and channels are there too.
export async function openTable(blobs) {
  if (typeof DecompressionStream === "undefined") throw new Error("This browser cannot unpack gzip; use one from 2023 or later.");
  for (const name of NEEDED) if (!(name in blobs)) throw new Error(`The page is incomplete: its part "${name}" is missing.`);
  const table = new Table(await gunzipJson(blobs.rows));
  delete blobs.rows;
  table.whole = table.load(blobs);
  return table;
}

export class Table {
  constructor(head) {
    Object.assign(this, { title: head.title, note: head.note, count: head.count, key: head.key, channels: head.channels });
    this.textPlaces = head.text;
    this.offsets = new Uint32Array(head.count + 1);
    head.token_counts.forEach((count, i) => (this.offsets[i + 1] = this.offsets[i] + count));
    this.columns = new Map();
    this.empty = []; // names of columns without any value
    for (const [name, column] of Object.entries(head.columns)) {
      if (column.values.every((value) => value === null)) this.empty.push(name);
      else this.columns.set(name, { kind: column.kind, get: getter(column) });
    }
    this.predicts = "prediction" in head.columns;
    this.columns.set("status", { kind: "text", get: (i) => this.status(i) });
    this.codes = {};
    this.ready = false;
    this.problems = groupBy(head.count, (i) => this.value(i, "id"));
    this.keys = this.annotationKeys();
  }

  async load(blobs) {
    const vocabulary = await gunzipJson(blobs.vocab);
    this.vocabulary = vocabulary.texts;
    this.tokenIds = vocabulary.ids;
    const tokens = await gunzip(blobs.tokens);
    this.tokenCodes = this.vocabulary.length <= 65536 ? new Uint16Array(tokens) : new Uint32Array(tokens);
    for (const [name, { bits }] of Object.entries(this.channels)) {
      const bytes = await gunzip(blobs[name]);
      this.codes[name] = bits === 8 ? new Uint8Array(bytes) : new Uint16Array(bytes);
    }
    this.ids = await gunzipJson(blobs.ids);
    for (const name of Object.keys(blobs)) delete blobs[name];
    this.ready = true;
  }

  value(i, name) {
    const column = this.columns.get(name);
    return column ? column.get(i) : null;
  }

  // One of five: unfinished (no boundary or no end), unjudged, unparsed (no answer could be extracted), correct, wrong.
  status(i) {
    if (!this.value(i, "finished")) return "unfinished";
    const correct = this.value(i, "correct");
    if (correct === null) return "unjudged";
    if (correct) return "correct";
    return this.predicts && this.value(i, "prediction") === null ? "unparsed" : "wrong";
  }

  // How a row is called where several are compared.
  label(i) {
    const round = this.value(i, "round") > 1 ? ` round ${this.value(i, "round")}` : "";
    return `${this.value(i, "source") || "unnamed"}${round} #${this.value(i, "sample")}`;
  }

  tokenCount(i) {
    return this.offsets[i + 1] - this.offsets[i];
  }

  tokens(i) {
    const texts = [];
    for (let t = this.offsets[i]; t < this.offsets[i + 1]; t++) texts.push(this.vocabulary[this.tokenCodes[t]]);
    return texts;
  }

  rationaleIds(i) {
    if (!this.tokenIds || !this.tokenCount(i)) return null;
    return Array.from(this.tokenCodes.subarray(this.offsets[i], this.offsets[i + 1]), (code) => this.tokenIds[code]);
  }

  idList(i, name) {
    const place = this.ids[name].values[i];
    return place === null ? null : this.ids[name].lists[place];
  }

  rationale(i) {
    const other = this.textPlaces.others[i];
    if (other !== undefined) return other;
    if (!this.ready) return "";
    const start = this.textPlaces.starts[i];
    return this.tokens(i).join("").slice(start, start + this.textPlaces.lengths[i]);
  }

  // Lower-case text that a search looks in; built once, in the background by `index` or when first asked for.
  searchText(i) {
    this.lower ??= new Array(this.count);
    const text = () => [this.value(i, "question"), this.rationale(i), this.value(i, "answer_text") ?? ""].join("\n").toLowerCase();
    return this.ready ? (this.lower[i] ??= text()) : text();
  }

  async index(isStopped) {
    for (let start = 0; start < this.count && !isStopped(); start += 250) {
      for (let i = start; i < Math.min(this.count, start + 250); i++) this.searchText(i);
      await new Promise((resolve) => setTimeout(resolve));
    }
  }

  // The stored number of one token, NaN where there is none.
  stored(name, t) {
    const codes = this.codes[name];
    const { bits, scale } = this.channels[name];
    const top = bits === 8 ? 255 : 65535;
    if (!codes || codes[t] === top) return NaN;
    const step = codes[t] / Math.floor(top / 2) - 1;
    return Math.sign(step) * scale * step * step;
  }

  // What names a row in annotations.jsonl; a number tells rows with equal names apart.
  annotationKeys() {
    const seen = new Map();
    return Array.from({ length: this.count }, (_, i) => {
      const name = annotationName({ id: this.value(i, "id"), source: this.value(i, "source"), round: this.value(i, "round"), sample: this.value(i, "sample") });
      const copy = seen.get(name) ?? 0;
      seen.set(name, copy + 1);
      return copy ? `${name}${copy}` : name;
    });
  }
}

export function annotationName({ id, source, round, sample, copy }) {
  return JSON.stringify([id, source, round, sample]) + (copy || "");
}

function getter({ kind, values, texts }) {
  if (kind === "text") return (i) => (values[i] === null ? null : texts[values[i]]);
  if (kind === "bool") return (i) => (values[i] === null ? null : values[i] === 1);
  return (i) => values[i];
}

function groupBy(count, keyOf) {
  const groups = new Map();
  for (let i = 0; i < count; i++) {
    const key = keyOf(i);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(i);
  }
  return groups;
}

// Unbiased pass@k (Chen et al. 2021): 1 - C(n-c, k) / C(n, k), as a product that cannot overflow.
export function passAtK(n, c, k) {
  if (n - c < k) return 1;
  let miss = 1;
  for (let i = n - c + 1; i <= n; i++) miss *= 1 - k / i;
  return 1 - miss;
}

// [{source, problems, samples, rates: [{k, rate, problems}]}] over the given rows; only judged rows count.
export function passRates(table, rows) {
  const bySource = new Map();
  for (const i of rows) {
    const correct = table.value(i, "correct");
    if (correct === null) continue;
    const source = sourceName(table, i);
    if (!bySource.has(source)) bySource.set(source, new Map());
    const problems = bySource.get(source);
    const tally = problems.get(table.value(i, "id")) ?? { n: 0, c: 0 };
    tally.n += 1;
    tally.c += correct ? 1 : 0;
    problems.set(table.value(i, "id"), tally);
  }
  return [...bySource].map(([source, problems]) => {
    const tallies = [...problems.values()];
    const rates = [];
    for (let k = 1; k <= Math.max(...tallies.map(({ n }) => n)); k *= 2) {
      const enough = tallies.filter(({ n }) => n >= k);
      rates.push({ k, rate: enough.reduce((sum, { n, c }) => sum + passAtK(n, c, k), 0) / enough.length, problems: enough.length });
    }
    return { source, problems: tallies.length, samples: tallies.reduce((sum, { n }) => sum + n, 0), rates };
  });
}

export function sourceName(table, i) {
  const round = table.value(i, "round") > 1 ? ` round ${table.value(i, "round")}` : "";
  return `${table.value(i, "source") || "unnamed"}${round}`;
}

// Rows of `to` whose verdict differs from that of the row of `from` for the same problem and sample number.
export function flips(table, from, to) {
  const before = new Map();
  const found = { fixed: [], broken: [], partner: new Map(), pairs: 0 };
  const name = (i) => JSON.stringify([table.value(i, "id"), table.value(i, "sample")]);
  for (let i = 0; i < table.count; i++) if (sourceName(table, i) === from && !before.has(name(i))) before.set(name(i), i);
  for (let i = 0; i < table.count; i++) {
    const other = before.get(name(i));
    if (sourceName(table, i) !== to || other === undefined) continue;
    const [was, is] = [table.value(other, "correct"), table.value(i, "correct")];
    if (was === null || is === null) continue;
    found.pairs += 1;
    if (was === is) continue;
    found[is ? "fixed" : "broken"].push(i);
    found.partner.set(i, other);
  }
  return found;
}
