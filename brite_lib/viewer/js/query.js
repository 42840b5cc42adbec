// The filter's language: terms with spaces between them, all of which must hold.
//   correct:false  len>300  kl>=2  source:psi,base  -tag:done  text:"therefore"  reward:null  len:100..300  "any text"
// ":" looks inside long texts and compares whole values elsewhere, where * stands for anything.

export const ALIASES = { len: "num_tokens", length: "num_tokens", answer: "answer_text", pred: "prediction", tag: "tags", is: "status" };
export const STATUSES = ["correct", "wrong", "unparsed", "unfinished", "unjudged"];
const LONG_TEXTS = new Set(["text", "question", "rationale", "answer_text", "note"]);
const TERM = /\s*(-?)(?:([A-Za-z_][\w/.@-]*?)(!=|>=|<=|[:=<>]))?("(?:[^"\\]|\\.)*"?|[^\s"]\S*)?/y;

// fields: Map of name to {kind: "number" | "bool" | "text" | "list", get(row)}. Returns a test of one row.
// Throws an Error with one sentence for a person.
export function parseQuery(text, fields) {
  const [fast, slow] = [[], []]; // whole texts are searched last
  TERM.lastIndex = 0;
  let before = "";
  while (TERM.lastIndex < text.length) {
    const at = TERM.lastIndex;
    if (!text.slice(at).trim()) break;
    const [whole, minus, field, operator, value] = TERM.exec(text) ?? [""];
    if (!whole.trim()) throw new Error(`Cannot read "${text.slice(at).trim()}".`);
    if (value === undefined) throw new Error(field ? `A value is missing after "${field}${operator}".` : `There is nothing after "${whole.trim()}".`);
    if (!field) checkWord(value, before, fields);
    before = field ? "" : value;
    const test = field ? fieldTest(field, operator, value, fields) : containsTest(fields.get("text"), [unquote(value)]);
    (test.slow ? slow : fast).push(minus ? (row) => !test(row) : test);
  }
  return (row) => fast.every((test) => test(row)) && slow.every((test) => test(row));
}

// What a person means as grammar must not be looked for as text.
function checkWord(word, before, fields) {
  if (/^(and|or|not)$/i.test(word)) {
    throw new Error(`All terms must hold, "${word}" is no operator: a comma is "or" (source:psi,base), a minus is "not"; in quotes it is a word to look for.`);
  }
  if (/^[<>=!:]/.test(word) && (fields.has(before) || Object.hasOwn(ALIASES, before))) throw new Error(`Write it without spaces, as in ${before}>5 or ${before}:null.`);
}

function fieldTest(given, operator, value, fields) {
  const name = fields.has(given) ? given : (ALIASES[given] ?? given);
  const field = fields.get(name);
  if (!field) throw new Error(`There is no column "${given}"${nearest(given, [...fields.keys(), ...Object.keys(ALIASES)])}`);
  if (value === "null") {
    if (![":", "=", "!="].includes(operator)) throw new Error(`"${given}${operator}null" cannot be compared; write ${given}:null.`);
    return (row) => isMissing(field.get(row)) !== (operator === "!=");
  }
  if (field.kind === "empty") throw new Error(`The column "${given}" is empty in this table.`);
  if (field.kind === "bool") return boolTest(given, operator, value, field);
  if (field.kind === "number") return numberTest(given, operator, value, field);
  if (!["=", ":", "!="].includes(operator)) throw new Error(`"${given}" is text, which "${operator}" cannot compare; use : or =.`);
  const values = operator === ":" && !value.startsWith('"') ? value.split(",").filter(Boolean) : [unquote(value)];
  if (operator === ":" && LONG_TEXTS.has(name)) return containsTest(field, values.map(unquote));
  if (name === "status") for (const one of values.map(unquote)) checkStatus(one);
  const test = wholeTest(field, values.map(unquote), operator === ":");
  return operator === "!=" ? (row) => !test(row) : test;
}

function checkStatus(value) {
  if (!value.includes("*") && !STATUSES.includes(value.toLowerCase())) throw new Error(`There is no status "${value}"; there are ${STATUSES.join(", ")}.`);
}

function containsTest(field, values) {
  const wanted = values.map((value) => value.toLowerCase());
  const test = (row) => {
    const text = field.lower ? field.lower(row) : (field.get(row) ?? "").toLowerCase();
    return wanted.some((value) => text.includes(value));
  };
  return Object.assign(test, { slow: true });
}

function wholeTest(field, values, wildcards) {
  const patterns = values.map((value) => {
    const escaped = value.replace(/[.+?^${}()|[\]\\*]/g, "\\$&");
    return new RegExp(`^${wildcards ? escaped.replaceAll("\\*", ".*") : escaped}$`, "is");
  });
  const matches = (value) => value !== null && patterns.some((pattern) => pattern.test(String(value)));
  return field.kind === "list" ? (row) => field.get(row).some(matches) : (row) => matches(field.get(row));
}

function boolTest(given, operator, value, field) {
  const wanted = { true: true, false: false, yes: true, no: false }[value.toLowerCase()];
  if (wanted === undefined || ![":", "=", "!="].includes(operator)) throw new Error(`"${given}" is true, false or null; write ${given}:true.`);
  return (row) => (field.get(row) === wanted) !== (operator === "!=");
}

function numberTest(given, operator, value, field) {
  const range = /^(.*)\.\.(.*)$/.exec(value);
  if (operator === ":" && range) {
    const [low, high] = [range[1] === "" ? -Infinity : parsedNumber(given, range[1]), range[2] === "" ? Infinity : parsedNumber(given, range[2])];
    return known(field, (x) => x >= low && x <= high);
  }
  const wanted = parsedNumber(given, value);
  const compare = {
    ">": (x) => x > wanted, ">=": (x) => x >= wanted, "<": (x) => x < wanted, "<=": (x) => x <= wanted,
    ":": (x) => x === wanted, "=": (x) => x === wanted, "!=": (x) => x !== wanted,
  };
  return known(field, compare[operator]);
}

const known = (field, test) => (row) => !isMissing(field.get(row)) && test(field.get(row));

function parsedNumber(given, value) {
  const parsed = Number(unquote(value));
  if (value.trim() === "" || Number.isNaN(parsed)) throw new Error(`"${given}" is a number, and "${value}" is none.`);
  return parsed;
}

function isMissing(value) {
  return value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length);
}

function unquote(value) {
  if (!value.startsWith('"')) return value;
  if (value.length < 2 || !value.endsWith('"')) throw new Error(`A closing quote is missing after ${value}`);
  return value.slice(1, -1).replace(/\\(.)/gs, "$1");
}

function nearest(given, names) {
  const close = names.map((name) => [distance(given.toLowerCase(), name), name]).sort((a, b) => a[0] - b[0])[0];
  return close && close[0] <= 2 ? `; did you mean "${close[1]}"?` : `; known: ${[...new Set(names)].sort().join(", ")}.`;
}

function distance(a, b) {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) row.push(Math.min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    previous = row;
  }
  return previous[b.length];
}
