// The selection as lines of JSON, in the columns that the notebooks read (brite_lib/tables.py).

import { sourceName } from "./data.js";

const SCALARS = ["id", "question", "gold", "rationale", "answer_text", "prediction", "correct", "finished", "source", "round", "sample", "seed", "num_tokens"];
const SIDE = ["rationale", "answer_text", "finished", "sample", "rationale_ids", "answer_ids"];

export const FORMATS = {
  jsonl: { title: "JSONL", about: "every column of one value per row, with tags and notes", file: "selection.jsonl" },
  pairs: { title: "DPO pairs", about: "one correct and one wrong sample of each problem and source; for 04_dpo, parameter pairs", file: "pairs.jsonl" },
  sft: { title: "SFT rows", about: "finished rationales; for 03_theta_sft, parameter rationales", file: "rationales.jsonl" },
  annotations: { title: "Tags and notes", about: "all that were made, not only of the selection", file: "annotations.jsonl" },
};

// Returns {text, summary}: the file and one sentence about it.
export function exported(format, table, rows, annotations) {
  if (format === "jsonl") return told(rows.map((i) => everything(table, i, annotations)), "row");
  if (format === "annotations") return told(annotations.list(), "annotated row");
  if (format === "sft") {
    const finished = rows.filter((i) => table.value(i, "finished"));
    return told(finished.map((i) => rationaleRow(table, i)), "row", left(rows.length - finished.length, "unfinished left out"));
  }
  return pairs(table, rows, annotations);
}

function told(records, what, more = "") {
  const text = records.map((record) => line(record) + "\n").join("");
  return { text, count: records.length, summary: `${records.length.toLocaleString("en")} ${what}${records.length === 1 ? "" : "s"}${more}` };
}

const left = (count, why) => (count ? `; ${count.toLocaleString("en")} ${why}` : "");

// Seeds are larger than JavaScript's exact integers: they stay text until here.
const line = (record) => JSON.stringify(record).replace(/"seed":"(-?\d+)"/, '"seed":$1');

function scalars(table, i) {
  return Object.fromEntries(SCALARS.map((name) => [name, name === "rationale" ? table.rationale(i) : table.value(i, name)]));
}

function rationaleRow(table, i) {
  return {
    ...scalars(table, i),
    prompt_ids: table.idList(i, "prompt_ids"),
    rationale_ids: table.rationaleIds(i),
    answer_ids: table.idList(i, "answer_ids"),
    logp_answer: table.value(i, "logp_answer"),
    reward: table.value(i, "reward"),
  };
}

function everything(table, i, annotations) {
  const record = scalars(table, i);
  for (const [name, column] of table.columns) if (!Object.hasOwn(record, name)) record[name] = column.get(i);
  return { ...record, ...annotations.of(i) };
}

// A row tagged "chosen" or "rejected" comes first, else the order of the list decides.
function pairs(table, rows, annotations) {
  const groups = new Map();
  for (const i of rows) {
    const name = JSON.stringify([table.value(i, "id"), sourceName(table, i)]);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(i);
  }
  const records = [];
  const missing = { contrast: 0, ids: 0 };
  for (const group of groups.values()) {
    const pick = (correct, tag) => {
      const fitting = group.filter((i) => table.value(i, "correct") === correct);
      return fitting.find((i) => annotations.of(i).tags.includes(tag)) ?? fitting[0];
    };
    const [chosen, rejected] = [pick(true, "chosen"), pick(false, "rejected")];
    if (chosen === undefined || rejected === undefined) missing.contrast += 1;
    else if (![chosen, rejected].every((i) => hasIds(table, i))) missing.ids += 1;
    else records.push(pair(table, group, chosen, rejected));
  }
  return told(records, "pair", left(missing.contrast, "without a contrast") + left(missing.ids, "without token ids"));
}

const hasIds = (table, i) => table.idList(i, "prompt_ids") !== null && table.rationaleIds(i) !== null && table.idList(i, "answer_ids") !== null;

function pair(table, group, chosen, rejected) {
  const judged = group.filter((i) => table.value(i, "correct") !== null);
  const record = Object.fromEntries(["id", "question", "gold", "source", "round"].map((name) => [name, table.value(chosen, name)]));
  record.num_samples = judged.length;
  record.num_correct = judged.filter((i) => table.value(i, "correct")).length;
  record.prompt_ids = table.idList(chosen, "prompt_ids");
  for (const [side, i] of [["chosen", chosen], ["rejected", rejected]]) {
    const whole = rationaleRow(table, i);
    for (const name of SIDE) record[`${side}_${name}`] = whole[name];
  }
  return record;
}

export function download(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
