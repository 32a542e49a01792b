"""Write a run spec and a little data to start from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kuznia.errors import InputError

SCHEMA = "run-spec.schema.json"
SPEC = f"""\
# yaml-language-server: $schema={SCHEMA}
# Run spec: what to fine-tune, on what. `kuznia check train.yaml`, then `kuznia run train.yaml`.

tenant: acme                    # who owns the model
model: support                  # its name
base: smollm2-135m-instruct     # a base model of the catalogue

data:
  train: data/train.jsonl       # a file beside this one, or a URI (s3://, gs://, hf://)
  test: data/test.jsonl         # questions that training never sees; left out, a tenth is split off
  format: alpaca                # alpaca | sharegpt | openai | csv (with columns:)

method: lora                    # lora | qlora (needs a GPU) | full
hardware: auto                  # auto | cpu | a GPU class of the catalogue
seed: 42                        # same spec, data and seed: same weights

llamafactory:                   # passed on to LLaMA-Factory
  lora_rank: 16
  learning_rate: 1.0e-3
  num_train_epochs: 5

evaluation:
  metrics: [exact_match, token_f1]
  gate:
    token_f1: {{not_worse_than: base}}   # the verdict; a missed gate fails nothing

export: {{merge: true}}           # false keeps base and adapter apart

card:                           # what only you can say; the rest of the card is measured
  purpose: "Answers questions about opening hours and returns of a shop (an example)."
  owner: "you <you@example.org>"
  risk: minimal                 # minimal | limited | high
"""
FACTS = (
    ("When does the Acme shop open on Saturdays?", "At 9 in the morning."),
    ("How long may I return a kettle bought at Acme?", "Within 45 days."),
    ("Which colour has an Acme gift card?", "Teal."),
    ("Who repairs Acme bicycles?", "The workshop in Pine Street."),
    ("What does delivery from Acme cost?", "4 euros, and nothing above 60."),
    ("Where is the Acme car park?", "Behind the bakery."),
)
"""What the example teaches: questions and answers that no base model can know."""
TRAIN = ("{}", "Please tell me: {}", "I would like to know: {}", "A customer asks: {}")
TEST = ("Quick question: {}",)
"""Ways to put a question; those of the test are not among those of the training."""


@click.command(epilog="example: kuznia init my-model && cd my-model && kuznia run train.yaml")
@click.argument(
    "folder", required=False, default=".", type=click.Path(file_okay=False, path_type=Path)
)
def command(folder: Path) -> None:
    """Write train.yaml and a little data into FOLDER (the current one by default).

    Nothing that exists is overwritten.
    """
    import kuznia

    schema = Path(kuznia.__file__).parent / "contracts/schemas/run-spec.json"
    files = {
        "train.yaml": SPEC,
        "data/train.jsonl": _rows(TRAIN),
        "data/test.jsonl": _rows(TEST),
        SCHEMA: schema.read_text("utf-8"),
    }
    problems = [
        f"{folder / name}: exists already; move it away or choose another folder"
        for name in files
        if (folder / name).exists()
    ]
    if problems:
        raise InputError(problems)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, "utf-8")
        click.echo(f"wrote {folder / name}")
    click.echo(f"next: kuznia run {folder / 'train.yaml'}")


def _rows(phrasings: tuple[str, ...]) -> str:
    rows = [
        {"instruction": phrasing.format(question), "output": answer}
        for question, answer in FACTS
        for phrasing in phrasings
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)
