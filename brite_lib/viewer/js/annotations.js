// Tags and notes of rows, kept by the name of the row (annotations.jsonl), never by its place in the table.

import { annotationName } from "./data.js";

export class Annotations {
  constructor(table, records, onChange) {
    this.table = table;
    this.onChange = onChange;
    this.load(records);
  }

  load(records) {
    this.byKey = new Map(records.map((record) => [annotationName(record), { tags: [...(record.tags ?? [])], note: record.note ?? "", record }]));
  }

  of(i) {
    const { tags = [], note = "" } = this.byKey.get(this.table.keys[i]) ?? {};
    return { tags, note };
  }

  set(i, { tags, note }) {
    const key = this.table.keys[i];
    const known = this.of(i);
    if (known.note === note && known.tags.join("\n") === tags.join("\n")) return;
    const name = Object.fromEntries(["id", "source", "round", "sample"].map((column) => [column, this.table.value(i, column)]));
    const copy = Number(key.slice(annotationName(name).length));
    if (tags.length || note) this.byKey.set(key, { tags, note, record: copy ? { ...name, copy } : name });
    else this.byKey.delete(key);
    this.onChange(this.list());
  }

  // Records of annotations.jsonl; those of rows that this table lacks are kept.
  list() {
    return [...this.byKey.values()].map(({ record, tags, note }) => ({ ...record, tags, note }));
  }

  allTags() {
    return [...new Set([...this.byKey.values()].flatMap(({ tags }) => tags))].sort();
  }
}

// What a page without a kernel keeps in the browser; "" where the browser forbids it.
export const stored = {
  read: (key) => attempt(() => JSON.parse(localStorage.getItem(`brite-rationales-${key}`) ?? "[]")) ?? [],
  write: (key, records) => attempt(() => (localStorage.setItem(`brite-rationales-${key}`, JSON.stringify(records)), true)) ?? false,
};

function attempt(action) {
  try {
    return action();
  } catch {
    return undefined;
  }
}
