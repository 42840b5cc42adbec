"""Tables for the browser: worked examples of three sources, hostile text, and one of any size."""

import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HOSTILE = {
    "script": "<script>globalThis.ran = 'script'</script>",
    "closing": "</script><script>globalThis.ran = 'closing'</script>",
    "image": "<img src=x onerror=\"globalThis.ran = 'image'\">",
    "svg": "<svg onload=\"globalThis.ran = 'svg'\"></svg><iframe srcdoc=\"<script>parent.ran='frame'</script>\"></iframe>",
    "link": "[press](javascript:globalThis.ran='link') <a href=\"javascript:globalThis.ran='link'\">press</a>",
    "tex": r"$\href{javascript:globalThis.ran='tex'}{press}$ and $\style{position:fixed;inset:0;background:red}{x}$ and $x^2$",
    "css": '</style><style>*{display:none!important}</style> style="position:fixed" ;background:url(https://evil.example/x)',
    "template": "${globalThis.ran='template'} {{constructor.constructor('ran=1')()}} ]]> <!-- -->",
    "direction": "a\u202egpj.exe\u202c \u2066isolated\u2069 \u200e\u200f",
    "controls": "nul\x00 bell\x07 escape\x1b[31m delete\x7f",
    "smuggled": "x" + "".join(chr(0xE0000 + ord(letter)) for letter in "unseen") + "\U000e0100 \u3164\u115f\ufff9a\ufffa",
    "stacked": "".join(letter + "\u0335\u0327\u0346" * 12 for letter in "stacked marks "),
    "lines": "\n" * 3000,
    "prototype": "__proto__ constructor",
    "surrogates": "\ud800 alone \udfff, and a pair \U0001d4b3",
    "long": "W" * 100_000,
    "blank": " \t\n\r\n  ",
    "nothing": "",
}

PROBLEMS = [
    ("Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did Natalia sell "
     "altogether in April and May?", "72",
     [("In April she sold 48 clips. In May she sold 48 / 2 = 24 clips. Altogether she sold 48 + 24 = 72 clips.", "72"),
      ("She sold 48 in April, and half as many in May, so 48 * 2 = 96. Then 48 + 96 = 144.", "144"),
      ("April: 48. May: half of 48 is 24.\n\nTotal: $48 + 24 = 72$.", "72"),
      ("Half as many means 24, therefore the answer is 48 + 24 = 62.", "62")]),
    ("Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she earn?", "10",
     [("She earns 12 / 60 = $0.2 per minute, so 0.2 * 50 = $10.", "10"),
      ("50 minutes is almost an hour, therefore she earned about 12.", "12"),
      ("$12 per hour times 50 minutes is 12 * 50 = 600.", "600"),
      ("Per minute 12/60 = 0.2; times 50 gives 10. I think so.", None)]),
    ("James writes a 3-page letter to 2 different friends twice a week. How many pages does he write a year?", "624",
     [("He writes 3*2 = 6 pages each time, 6*2 = 12 pages a week, 12*52 = 624 pages a year.", "624"),
      ("3 pages * 2 friends * 52 = 312.", "312"),
      ("Each week 3 * 2 * 2 = 12 pages, and 12 * 52 = 624.", "624"),
      ("He writes 12 pages a week. " * 12, None)]),
]  # fmt: skip
ATTEMPTS = {"base": (0, 1, 3, 0), "psi": (1, 0, 2, 3), "brite": (0, 2, 0, 1)}  # which of a problem's texts each sample is


def three_sources():
    """36 rows with every kind of verdict and all four stored channels."""
    rng = np.random.default_rng(0)
    rows = []
    for number, (question, gold, texts) in enumerate(PROBLEMS):
        for source, attempts in ATTEMPTS.items():
            for sample, attempt in enumerate(attempts):
                rationale, prediction = texts[attempt]
                tokens = re.findall(r"\s?\w+|\s*[^\w\s]|\s+", rationale)
                theta = -rng.exponential(0.7, len(tokens))
                psi = np.minimum(theta + rng.normal(0.15, 0.4, len(tokens)), -1e-3)
                finished = len(tokens) < 60
                unjudged = (number, source, sample) == (2, "brite", 3)
                rows.append(
                    {
                        "id": f"gsm8k-{number:04d}", "question": question, "gold": gold, "rationale": rationale,
                        "answer_text": None if not finished else f" {prediction}." if prediction else " I do not know",
                        "prediction": prediction if finished else None, "correct": None if unjudged else prediction == gold,
                        "finished": finished, "source": source, "round": 1, "sample": sample, "seed": 2**62 + 12 * number + sample,
                        "num_tokens": len(tokens), "prompt_ids": [1, 2, 3 + number],
                        "rationale_ids": [sum(map(ord, token)) for token in tokens], "answer_ids": [7, 2], "tokens": tokens,
                        "logp_theta": theta.tolist(), "logp_psi": psi.tolist(),
                        "logp_answer": -float(rng.exponential(1)) if finished else None, "reward": None,
                        "advantage": rng.normal(0, 1, len(tokens)).tolist(), "value": rng.normal(-1, 1, len(tokens)).tolist(),
                    }
                )  # fmt: skip
    return rows


def hostile():
    """One row per hostile text, which is in every column of text and among the tokens."""
    rows = []
    for number, (name, text) in enumerate(HOSTILE.items()):
        written = dict.fromkeys(("question", "gold", "rationale", "answer_text", "prediction", "source"), text)
        tokens = [text, text[:7], " plain", "\n", " ", ""]
        numbers = [random.Random(number).uniform(-3, 0) for _ in tokens]
        rows.append(
            {"id": f"{name} {text[:200]}", "correct": number % 2 == 0, "finished": True, "round": 1, "sample": number, "tokens": tokens}
            | {"logp_psi": numbers, "logp_theta": numbers[::-1]} | written
        )  # fmt: skip
    return rows


def of_any_size(rows=20_000, length=300, channels=2, words=30_000):
    """A table like a large run's: Zipf-distributed words, exponential −log P, eight samples per problem of two sources."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, words + 1) ** 1.05
    ids = rng.choice(words, size=rows * length, p=weights / weights.sum()).astype(np.int32)
    texts = [f" w{number:x}" for number in range(words)]
    offsets = pa.array(np.arange(0, rows * length + 1, length, dtype=np.int32))
    tokens = pa.ListArray.from_arrays(offsets, pa.DictionaryArray.from_arrays(pa.array(ids), pa.array(texts)).cast(pa.string()))
    theta = -rng.exponential(0.8, rows * length)
    psi = np.minimum(theta + rng.normal(0, 0.3, rows * length), -1e-4)

    def per_token(values):
        return pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.float32)))

    columns = {
        "id": [f"p{row // 8:05d}" for row in range(rows)],
        "question": [f"What is the sum of {row // 8} and {row // 8 * 7 % 97}?" for row in range(rows)],
        "gold": [str(row // 8) for row in range(rows)],
        "rationale": pc.binary_join(tokens, ""),
        "answer_text": [str(row) for row in range(rows)],
        "prediction": [str(row) for row in range(rows)],
        "correct": (rng.random(rows) < 0.5).tolist(),
        "finished": [row % 23 > 0 for row in range(rows)],
        "source": ["psi" if row % 2 else "base" for row in range(rows)],
        "sample": [row % 8 // 2 for row in range(rows)],
        "seed": rng.integers(2**62, size=rows).tolist(),
        "num_tokens": [length] * rows,
        "prompt_ids": [list(range(row // 8, row // 8 + 40)) for row in range(rows)],
        "rationale_ids": pa.ListArray.from_arrays(offsets, pa.array(ids)),
        "answer_ids": [[row % 1000, 2] for row in range(rows)],
        "tokens": tokens,
        "logp_theta": per_token(theta),
        "logp_psi": per_token(psi),
        "logp_answer": (-rng.exponential(2, rows)).tolist(),
    }
    if channels == 4:
        columns |= {"advantage": per_token(rng.normal(0, 1, rows * length)), "value": per_token(rng.normal(0, 2, rows * length))}
    return pa.table(columns)
