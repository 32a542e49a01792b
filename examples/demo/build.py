"""Write train.jsonl and test.jsonl from facts.yaml, all beside this file.

Run `python examples/demo/build.py` after editing facts.yaml; faults in it are named, exit code 2.
With `--check` nothing is written: exit code 1 if a file is not what facts.yaml gives.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
PHRASINGS = {"train": 6, "test": 2}


def faults(facts: list[dict[str, Any]]) -> list[str]:
    """Name every fault at once: phrasings miscounted, a text used twice, an answer too long."""
    found: list[str] = []
    seen: dict[str, str] = {}
    for fact in facts:
        for split, count in PHRASINGS.items():
            if len(fact[split]) != count:
                found.append(f"{fact['id']}: {split}: {len(fact[split])} phrasings; write {count}")
        for text in map(str, [*fact["train"], *fact["test"], fact["answer"]]):
            words = " ".join(re.findall(r"\w+", text.casefold()))
            if words in seen:
                found.append(f"{fact['id']}: {text!r} is in {seen[words]} already; reword one")
            seen[words] = fact["id"]
        if not 1 <= len(str(fact["answer"]).split()) <= 8:
            found.append(f"{fact['id']}: answer {fact['answer']!r}: use 1 to 8 words")
    return found


def rows(facts: list[dict[str, Any]], split: str) -> bytes:
    """Give one split as JSON lines in alpaca form, in the order of facts.yaml."""
    pairs = [(question, str(fact["answer"])) for fact in facts for question in fact[split]]
    table = [{"instruction": question, "input": "", "output": answer} for question, answer in pairs]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table).encode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the demo data from facts.yaml.")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if they differ")
    options = parser.parse_args()
    facts = yaml.safe_load((HERE / "facts.yaml").read_text("utf-8"))
    if found := faults(facts):
        print(*(f"facts.yaml: {fault}" for fault in found), sep="\n", file=sys.stderr)
        sys.exit(2)
    for path, data in [(HERE / f"{split}.jsonl", rows(facts, split)) for split in PHRASINGS]:
        if not options.check:
            path.write_bytes(data)
        elif not path.exists() or path.read_bytes() != data:
            sys.exit(f"{path.name}: not what facts.yaml gives; run examples/demo/build.py")
