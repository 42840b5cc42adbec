// Word difference of two texts (Myers' greedy algorithm): what only a has, what only b has, what both have.

const WORDS = /\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu;
const MOST_EDITS = 1000;

// Returns [{kind: "same" | "a" | "b", text}], neighbours of one kind joined.
export function wordDiff(a, b) {
  const [left, right] = [a.match(WORDS) ?? [], b.match(WORDS) ?? []];
  let start = 0;
  while (start < Math.min(left.length, right.length) && left[start] === right[start]) start++;
  let end = 0;
  while (end < Math.min(left.length, right.length) - start && left.at(-1 - end) === right.at(-1 - end)) end++;
  const middle = shortestEdit(left.slice(start, left.length - end), right.slice(start, right.length - end));
  const parts = [...same(left.slice(0, start)), ...middle, ...same(left.slice(left.length - end))];
  return joined(parts);
}

const same = (words) => words.map((text) => ({ kind: "same", text }));

function shortestEdit(a, b) {
  const reach = new Map([[1, 0]]);
  const trail = [];
  for (let edits = 0; edits <= Math.min(a.length + b.length, MOST_EDITS); edits++) {
    trail.push(new Map(reach));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && (reach.get(k - 1) ?? -1) < (reach.get(k + 1) ?? -1));
      let x = down ? reach.get(k + 1) : reach.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      reach.set(k, x);
      if (x >= a.length && x - k >= b.length) return backtrack(a, b, trail);
    }
  }
  return [...a.map((text) => ({ kind: "a", text })), ...b.map((text) => ({ kind: "b", text }))]; // too different to be told in detail
}

function backtrack(a, b, trail) {
  const parts = [];
  let [x, y] = [a.length, b.length];
  for (let edits = trail.length - 1; edits >= 0; edits--) {
    const reach = trail[edits];
    const k = x - y;
    const down = k === -edits || (k !== edits && (reach.get(k - 1) ?? -1) < (reach.get(k + 1) ?? -1));
    const fromX = reach.get(down ? k + 1 : k - 1) ?? 0;
    const fromY = fromX - (down ? k + 1 : k - 1);
    while (x > Math.max(fromX, 0) && y > Math.max(fromY, 0)) parts.push({ kind: "same", text: a[--x] }) && y--;
    if (edits) parts.push(down ? { kind: "b", text: b[--y] } : { kind: "a", text: a[--x] });
  }
  return parts.reverse();
}

// Deletions before insertions within a run of changes, and equal neighbours in one piece.
function joined(parts) {
  const result = [];
  let run = { a: "", b: "" };
  const flush = () => {
    for (const kind of ["a", "b"]) if (run[kind]) result.push({ kind, text: run[kind] });
    run = { a: "", b: "" };
  };
  for (const [place, { kind, text }] of parts.entries()) {
    if (kind !== "same") {
      run[kind] += text;
      continue;
    }
    if (place && !text.trim() && parts[place - 1].kind !== "same" && parts[place + 1]?.kind === parts[place - 1].kind) {
      run.a += text; // a blank between two changed words belongs to the change
      run.b += text;
      continue;
    }
    flush();
    if (result.at(-1)?.kind === "same") result.at(-1).text += text;
    else result.push({ kind, text });
  }
  flush();
  return result;
}
