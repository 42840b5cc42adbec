"""The rationale browser as HTML that needs nothing else, and as plain text for terminals and GitHub.

Model text is untrusted. It reaches HTML in two ways only: inside gzip in base64, which holds no ``<``, and escaped in the static
table, which also survives where scripts are taken out (an untrusted notebook): colours are inline styles made of numbers.
"""

import base64
import hashlib
import html
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from brite_lib.files import atomic_write_text
from brite_lib.viewer.pack import CHANNELS, Packed

# One module in several files, in the order in which they need each other.
MODULES = ("dom", "data", "query", "diff", "annotations", "export", "heat", "list", "detail", "toolbar", "viewer")
STATIC_ROWS, STATIC_TOKENS = 20, 200
BLOCKS = "▁▂▃▄▅▆▇█"
BADGES = {"correct": "✓ correct", "wrong": "✗ wrong", "unparsed": "∅ unparsed", "unfinished": "… unfinished", "unjudged": "? not judged"}
HIDDEN = re.compile(  # the same as in dom.js
    r"(?<![^\x00-\x7f\u200b-\u200f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f\u200b-\u200f])"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
)


def script() -> str:
    """The browser's source as one ES module: its files joined, their imports of each other left out."""
    sources = [(files("brite_lib.viewer") / "js" / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    joined = "\n".join(re.sub(r"^export (?!default)", "", source, flags=re.MULTILINE) for source in sources)
    return re.sub(r'^import .* from "\./\w+\.js";\n', "", joined, flags=re.MULTILINE) + "\nexport { mount, mountAll };\n"


def style() -> str:
    """The browser's style sheet."""
    return (files("brite_lib.viewer") / "viewer.css").read_text(encoding="utf-8")


def fragment(packed: Packed) -> str:
    """HTML for a notebook's output: the static table, which a script replaces by the browser where scripts run."""
    return f'{_place(packed)}\n<script type="module">{script()}\nmountAll();</script>'


def write_page(packed: Packed, path: str | Path, title: str) -> Path:
    """The browser as one HTML file. Its content policy lets nothing run but its own script, and nothing be fetched."""
    source = f"{script()}\nmountAll();"
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escaped(title)}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; background: #fff; color: #1a1a1a; font: 14px/1.5 system-ui, sans-serif; }}
details {{ padding: 1rem; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #161719; color: #e4e4e4; }} }}
@media (min-width: 641px) {{ .brite-page {{ --brite-height: 100vh; }} }}
</style>
</head>
<body>
<main class="brite-page">
{_place(packed)}
</main>
<script type="module">{source}</script>
</body>
</html>
"""
    atomic_write_text(path, page)
    return Path(path)


def static_table(packed: Packed) -> str:
    """The first rationales as HTML without scripts and styles that a sanitiser would take out."""
    table = packed.table
    shown = table.slice(0, STATIC_ROWS).to_pylist()
    more = "" if len(shown) == table.num_rows else f" (the first {len(shown)} of {table.num_rows:,})"
    cell = '<td style="text-align:left;vertical-align:top">'  # notebooks align numbers, that is to the right
    rows = "\n".join(
        f"<tr>{cell}{BADGES[status(row)]}<br>{_escaped(_label(row))}</td>{cell}{_escaped(row['question'], 400)}</td>"
        f"{cell}{_heat(row)}</td>{cell}{_escaped(row.get('prediction'), 100)}</td>{cell}{_escaped(row['gold'], 100)}</td></tr>"
        for row in shown
    )
    titles = ("verdict", "question", "rationale", "predicted", "right answer")
    heads = "".join(f'<th style="text-align:left">{title}</th>' for title in titles)
    hint = "This is a static table. Where scripts may run (trust the notebook, or open the HTML page) it becomes a browser with filter, "
    return (
        f"<details><summary>{_counted(table.num_rows)}{more}</summary>\n"
        f"<p>{hint}heat of every token, differences and tags. {_escaped(packed.note)} Orange: surprising tokens.</p>\n"
        f"<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></details>"
    )


def plain_text(packed: Packed, rows: int = 12) -> str:
    """The first rationales for a terminal: verdict, where it is from, text, and one block per token, higher where more surprising."""
    table = packed.table
    lines = [_counted(table.num_rows) + (f"; {packed.note}" if packed.note else "")]
    for row in table.slice(0, rows).to_pylist():
        lines.append(f"{BADGES[status(row)]:<12} {_label(row)} {_line(row['id'], 40)}: {_line(row['question'], 60)}")
        lines.append(f"    {_line(row['rationale'], 100)}")
        name, values = _surprise(row)
        if values is not None:
            lines.append(f"    {_blocks(values[:100])}  −{name}, ▁ 0 … █ {max(5.0, float(np.nanmax(values, initial=0.0))):.1f} nats")
    if table.num_rows > rows:
        lines.append(f"… {table.num_rows - rows} more")
    return "\n".join(lines)


def status(row: dict[str, Any]) -> str:
    """correct, wrong, unparsed, unfinished or unjudged; the same rule as in data.js."""
    if not row["finished"]:
        return "unfinished"
    if row["correct"] is None:
        return "unjudged"
    if row["correct"]:
        return "correct"
    return "unparsed" if row.get("prediction", "") is None else "wrong"


def _place(packed: Packed) -> str:
    parts = {name: base64.b64encode(blob).decode() for name, blob in packed.blobs.items()}
    parts["css"] = base64.b64encode(style().encode()).decode()
    scripts = "\n".join(f'<script type="text/plain" data-blob="{name}">{part}</script>' for name, part in parts.items())
    return f"<div data-brite-rationales>\n{static_table(packed)}\n{scripts}\n</div>"


def _heat(row: dict[str, Any]) -> str:
    """The rationale; where tokens have log-probabilities, a colour and a title for each."""
    name, values = _surprise(row)
    if values is None:
        return _escaped(row["rationale"], 2000)
    spans = []
    for token, value in zip(row["tokens"][:STATIC_TOKENS], values.tolist(), strict=False):
        share = 0.0 if np.isnan(value) else min(1.0, max(0.0, value / 5.0)) * 0.62
        spans.append(f'<span style="background-color:rgba(203,96,4,{share:.2f})" title="{name} {-value:.3f}">{_escaped(token, 200)}</span>')
    more = f" … {len(values) - STATIC_TOKENS} more tokens" if len(values) > STATIC_TOKENS else ""
    return "".join(spans) + more


def _surprise(row: dict[str, Any]) -> tuple[str, np.ndarray | None]:
    """−log P of each token, (tokens,) nats, under ψ where known, else under θ."""
    for key in ("psi", "theta"):
        values = row.get(CHANNELS[key])
        if values and row.get("tokens"):
            return {"psi": "log P_ψ", "theta": "log P_θ"}[key], -np.array(values[: len(row["tokens"])], dtype=np.float64)
    return "", None


def _blocks(values: np.ndarray) -> str:
    top = max(5.0, float(np.nanmax(values, initial=0.0)))
    steps = np.clip(np.nan_to_num(values) / top, 0, 1) * (len(BLOCKS) - 1)
    return "".join(BLOCKS[round(step)] for step in steps)


def _label(row: dict[str, Any]) -> str:
    round_ = f" round {row['round']}" if row["round"] > 1 else ""
    return f"{_line(row['source'], 40) or 'unnamed'}{round_} #{row['sample']}"


def _counted(rows: int) -> str:
    return f"{rows:,} rationale{'' if rows == 1 else 's'}"


def _line(text: str, length: int) -> str:
    text = " ".join(_visible(text[: 4 * length]).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _visible(text: str) -> str:
    """Control and direction characters drawn, so that text can neither hide nor reorder anything."""
    return HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def _escaped(text: str | None, length: int = 10_000) -> str:
    text = "" if text is None else text if len(text) <= length else text[:length] + "…"
    return html.escape(_visible(text)).replace("\n", "<br>")
