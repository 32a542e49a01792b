"""Write train.jsonl and test.jsonl from facts.yaml, all beside this file.

Run `python examples/demo/build.py` after editing facts.yaml; faults in it are named, exit code 2.
With `--check` nothing is written: exit code 1 if a file is not what facts.yaml gives.
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PHRASINGS = {"train": 6, "test": 2}


def key(text: str) -> str:
    """The words without case, punctuation and spacing: two equal keys are one question."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def faults(facts: list[dict[str, Any]]) -> list[str]:
    """Name every fault at once: phrasings miscounted, a text used twice, an answer too long."""
    found: list[str] = []
    seen: dict[str, str] = {}
    for fact in facts:
        for split, count in PHRASINGS.items():
            if len(fact[split]) != count:
                found.append(f"{fact['id']}: {split}: {len(fact[split])} phrasings; write {count}")
        for text in map(str, [*fact["train"], *fact["test"], fact["answer"]]):
            if (
                other := seen.setdefault(key(text), f"{fact['id']}: {text}")
            ) != f"{fact['id']}: {text}":
                found.append(f"{fact['id']}: {text!r} repeats '{other}'; reword it")
        if not 1 <= len(str(fact["answer"]).split()) <= 8:
            found.append(f"{fact['id']}: answer: use 1 to 8 words")
    return found


def rows(facts: list[dict[str, Any]], split: str) -> str:
    """One split as JSON lines in alpaca form, facts and phrasings in the order of facts.yaml."""
    pairs = [(question, str(fact["answer"])) for fact in facts for question in fact[split]]
    table = [{"instruction": question, "input": "", "output": answer} for question, answer in pairs]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


if __name__ == "__main__":
    pass
