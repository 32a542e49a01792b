"""Stop bad data before it costs a training run, and bring good data into one form.

Reads: the train and test files that the run spec names.
Writes: <run>/data-check/train.jsonl and test.jsonl: {"messages": [...]} a line, NFC, stripped.
Fails when: a file is missing, empty or not what the spec says, rows are too few, or test rows
    were trained on (2); the store does not answer (3).
Safe to repeat because: the same files and seed give the same bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from kuznia.contracts.base import digest_of
from kuznia.contracts.runspec import Data
from kuznia.contracts.steps import DataCheckInputs, DataCheckOutputs
from kuznia.errors import InputError
from kuznia.progress import progress
from kuznia.sources import data_file, name_of
from steps.context import Context
from steps.messages import Messages, estimated_tokens, fewest_tokens, prompt_key, tidy
from steps.rows import Faults, read_rows
from steps.splits import Split

_PAIRS = 10
"""Overlapping rows that are named."""
_LEAST = {"train": 2, "test": 1}
_EVERY = 10_000
"""Rows between two reports of progress."""


def run(inputs: DataCheckInputs, context: Context) -> DataCheckOutputs:
    plan = inputs.plan
    checked = check(
        plan.spec.data,
        seed=plan.spec.seed,
        cutoff=int(plan.trainer["cutoff_len"]),
        system=plan.trainer.get("default_system"),
        folder=context.workdir,
        say=lambda rows: progress("data-check", rows, max(rows, plan.estimate.rows), "rows"),
    )
    files = {
        name: context.put(split.path, f"{plan.prefix}/data-check/{name}.jsonl")
        for name, split in checked.items()
    }
    for split in checked.values():
        print(split, flush=True)
    return DataCheckOutputs(
        train=files["train"],
        test=files["test"],
        fingerprint=digest_of([files["train"].sha256, files["test"].sha256]),
        train_report=checked["train"].report(),
        test_report=checked["test"].report(),
        overlap=0,
    )


def check(
    data: Data,
    *,
    seed: int,
    cutoff: int,
    system: str | None,
    folder: Path,
    say: Callable[[int], None] = lambda _: None,
) -> dict[str, Split]:
    """Write `train.jsonl` and `test.jsonl` into `folder`; returns what was found in each.

    Rows that the trainer would surely cut at `cutoff` tokens are dropped; `system` is the prompt
    that the chat template adds to rows without one. Without a test file rows with equal prompts go
    together into one split, chosen by their hash, so that a row stays where it is when others
    are added; at least one group is held out. Raises InputError with every fault of both files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    added = [{"role": "system", "content": system or ""}]
    most, fewest = (estimated_tokens(added), fewest_tokens(added)) if system else (0, 0)
    problems: list[str] = []
    lowest = 1.0
    with ExitStack() as stack:
        splits = {}
        for name in _LEAST:
            path = folder / f"{name}.jsonl"
            splits[name] = Split(name, path, stack.enter_context(path.open("wb")))
        for name, uri in (("train", data.train), ("test", data.test)):
            faults = Faults(name_of(uri)) if uri else None
            if uri is None or faults is None:
                continue
            for place, row in _rows(uri, name, data, folder, faults):
                messages = tidy(row)
                prompt = prompt_key(messages)
                share = _share(prompt, seed)
                lowest = min(lowest, share)
                held_out = data.test is None and share < data.test_fraction
                split = splits["test" if held_out else name]
                tokens = estimated_tokens(messages, most)
                least = fewest_tokens(messages, fewest) if tokens > cutoff else tokens
                split.take(place, messages, prompt, tokens, least, cutoff)
                if (read := sum(each.read for each in splits.values())) % _EVERY == 0:
                    say(read)
            problems += faults.lines()
    if problems:
        raise InputError(problems)
    if data.test is None and not splits["test"].read and splits["train"].kept > _LEAST["train"]:
        wider = data.model_copy(update={"test_fraction": math.nextafter(lowest, 1)})
        return check(wider, seed=seed, cutoff=cutoff, system=system, folder=folder, say=say)
    if problems := [*_too_few(splits, data), *_overlap(splits)]:
        raise InputError(problems)
    return splits


def _rows(
    uri: str, name: str, data: Data, folder: Path, faults: Faults
) -> Iterator[tuple[str, Messages]]:
    try:
        path = data_file(uri, folder / "source" / name)
    except FileNotFoundError:
        faults.add(f"data.{name}", f"{faults.name} does not exist; correct the path")
        return
    yield from read_rows(path, faults.name, data, faults)


def _share(prompt: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on the prompt and the seed alone."""
    digest = hashlib.blake2b(prompt + seed.to_bytes(4, "big"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _too_few(splits: dict[str, Split], data: Data) -> Iterator[str]:
    for name, split in splits.items():
        if split.kept >= _LEAST[name]:
            continue
        if name == "test" and data.test is None:
            yield (
                f"data.test_fraction: {data.test_fraction} of {splits['train'].read} rows leaves "
                "none for testing; add rows, name a test file or raise data.test_fraction"
            )
        else:
            uri = data.train if name == "train" else data.test
            yield (
                f"{name_of(uri or '')}: {split}; at least {_LEAST[name]} different rows are "
                "needed, add some"
            )


def _overlap(splits: dict[str, Split]) -> list[str]:
    trained, tested = splits["train"].prompts, splits["test"].prompts
    both = [prompt for prompt in tested if prompt in trained]
    lines = [
        f"{tested[prompt]}: asks the same as {trained[prompt]}; remove one of the two"
        for prompt in both[:_PAIRS]
    ]
    if len(both) > _PAIRS:
        lines.append(f"and {len(both) - _PAIRS} more test rows ask what train rows ask")
    return lines
