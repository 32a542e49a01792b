"""Turn conversations of the installed package chatterbot-corpus into a CSV: question,answer.

None of its data is in this repository: `pip install --no-deps chatterbot-corpus==1.3.3`, then
`python examples/corpus/convert.py --language english --category trivia --out trivia.csv`.
A row is the opening line of a conversation and the first reply to it; equal rows are kept once.
"""

import argparse
import csv
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml


def data_folder() -> Path:
    """Find the package's YAML files: one folder a language, one file a category."""
    spec = find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        sys.exit("chatterbot_corpus: not installed; pip install --no-deps chatterbot-corpus==1.3.3")
    return Path(spec.origin).parent / "data"


def one_line(text: object) -> str:
    """Give a turn as text on one line; YAML reads some turns as numbers."""
    return " ".join(str(text).split())


def read(path: Path) -> list[tuple[str, str]]:
    """Give the question and first reply of each conversation, in the file's order."""
    turns = yaml.safe_load(path.read_text("utf-8"))["conversations"]
    return [(one_line(t[0]), one_line(t[1])) for t in turns if len(t) > 1]


def main() -> None:
    """Parse, convert, print the counts."""
    parser = argparse.ArgumentParser(description="chatterbot-corpus to CSV: question,answer")
    parser.add_argument("--language", default="english")
    parser.add_argument("--category", nargs="+", help="file names without .yml (all if not given)")
    parser.add_argument("--out", type=Path, default=Path("corpus.csv"))
    options = parser.parse_args()

    files = {path.stem: path for path in sorted(data_folder().glob(f"{options.language}/*.yml"))}
    if not files:
        known = ", ".join(sorted(path.name for path in data_folder().iterdir()))
        parser.error(f"--language {options.language}: not in the package; choose from {known}")
    chosen: list[str] = options.category or list(files)
    if unknown := [name for name in chosen if name not in files]:
        known = ", ".join(files)
        parser.error(f"--category {' '.join(unknown)}: not there; choose from {known}")

    kept: dict[tuple[str, str], None] = {}
    for name in chosen:
        rows = read(files[name])
        before = len(kept)
        kept.update(dict.fromkeys(rows))
        print(f"{name}: {len(rows)} conversations, {len(kept) - before} new rows")
    with options.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["question", "answer"])
        writer.writerows(kept)
    print(f"{options.out}: {len(kept)} rows, {len({question for question, _ in kept})} questions")


if __name__ == "__main__":
    main()
