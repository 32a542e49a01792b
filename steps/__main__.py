"""Run one step: `python -m steps NAME --inputs in.json --outputs out.json`.

A step that has finished before, with the same inputs, is not run again: its result is read from
the store. Exit codes: 0 done, 2 a person's file is wrong, 3 a dependency failed, 75 preempted
after a checkpoint, 1 our bug.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kuznia import __version__, settings
from kuznia.contracts import steps as contracts
from kuznia.contracts.base import Contract, canonical_json, digest_of, problems_of
from kuznia.contracts.catalogue import load_catalogue
from kuznia.contracts.runspec import parse_run_spec
from kuznia.errors import InputError, KuzniaError
from kuznia.store import open_store
from kuznia.termination import report_bugs, report_failure
from steps.context import Context

STEPS: dict[str, tuple[type[Contract], type[Contract]]] = {
    "plan": (contracts.PlanInputs, contracts.PlanOutputs),
    "data-check": (contracts.DataCheckInputs, contracts.DataCheckOutputs),
    "fetch-base": (contracts.FetchBaseInputs, contracts.FetchBaseOutputs),
    "train": (contracts.TrainInputs, contracts.TrainOutputs),
    "evaluate": (contracts.EvaluateInputs, contracts.EvaluateOutputs),
    "export": (contracts.ExportInputs, contracts.ExportOutputs),
    "verify": (contracts.VerifyInputs, contracts.VerifyOutputs),
    "register": (contracts.RegisterInputs, contracts.RegisterOutputs),
    "model-card": (contracts.ModelCardInputs, contracts.ModelCardOutputs),
}
"""Every step with its contracts; its code is in `steps/<name>.py`."""


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn failures into exit codes."""
    arguments = _parser().parse_args(argv)
    try:
        outputs = run_step(arguments.name, _inputs(arguments), _workdir(arguments))
    except KuzniaError as error:
        return report_failure(error)
    arguments.outputs.parent.mkdir(parents=True, exist_ok=True)
    # Two braces in a row would be a reference to Argo, as in rows about {{Order Number}}.
    arguments.outputs.write_bytes(canonical_json(outputs).replace(b"{{", rb"{\u007b"))
    return 0


def run_step(name: str, values: dict[str, Any], workdir: Path) -> Contract:
    """Run step `name`, or read its finished result.

    Raises InputError for inputs that do not fit the step's contract, and whatever the step raises.
    """
    model, result = STEPS[name]
    try:
        inputs = model.model_validate(values)
    except ValidationError as error:
        raise InputError(problems_of(error, f"{name} inputs")) from None
    store = open_store(settings.store_uri())
    context = Context(store, settings.tracking_uri(), workdir, settings.cache())
    folder = f"{_prefix(inputs)}/{name}"
    key = f"{folder}/result.json"
    known = {"step": name, "kuznia": __version__, "inputs": inputs.model_dump(mode="json")}
    if name == "plan":
        # The others go by the plan.
        catalogue = load_catalogue().model_dump(mode="json")
        known["workspace"] = settings.workspace() | {"catalogue": catalogue}
    digest = digest_of(known)
    try:
        finished = json.loads(store.read(key))
    except FileNotFoundError:
        finished = {}
        # Only the first attempt leaves its time: until then the step was queueing.
        store.create(f"{folder}/started.json", canonical_json({"at": time.time()}))
    if finished.get("inputs_digest") == digest:
        print(f"{name}: already done, nothing to repeat", flush=True)
        return result.model_validate(finished["outputs"])
    workdir.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"steps.{name.replace('-', '_')}")
    outputs: Contract = module.run(inputs, context)
    record = {
        "inputs_digest": digest,
        "outputs": outputs.model_dump(mode="json"),
        "finished": time.time(),
    }
    store.write(key, canonical_json(record))
    return outputs


def _prefix(inputs: Contract) -> str:
    if isinstance(inputs, contracts.PlanInputs):
        return f"runs/{parse_run_spec(inputs.config).tenant}/{inputs.run}"
    plan: contracts.PlanOutputs = inputs.plan  # type: ignore[attr-defined]
    return plan.prefix


def _inputs(arguments: argparse.Namespace) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if arguments.inputs:
        values = json.loads(arguments.inputs.read_text("utf-8"))
    for pair in arguments.input:
        name, _, text = pair.partition("=")
        whole = Path(text[1:]).read_text("utf-8") if text.startswith("@") else text
        values[name.replace("-", "_")] = json.loads(whole)
    for pair in arguments.text:
        name, _, text = pair.partition("=")
        values[name.replace("-", "_")] = text
    return values


def _workdir(arguments: argparse.Namespace) -> Path:
    return Path(arguments.workdir or os.environ.get("KUZNIA_WORKDIR") or f"work/{arguments.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m steps",
        description="Run one step of the chain.",
        epilog='example: python -m steps plan --text config="$(cat train.yaml)" '
        "--text run=try-1 --outputs plan.json",
    )
    parser.add_argument("name", choices=STEPS, help="the step")
    parser.add_argument("--inputs", type=Path, help="JSON file with all inputs")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="one input, as JSON or as @ and the path of a file with JSON",
    )
    parser.add_argument(
        "--text", action="append", default=[], metavar="NAME=TEXT", help="one input, as text"
    )
    parser.add_argument("--outputs", type=Path, required=True, help="where the outputs go, as JSON")
    parser.add_argument("--workdir", help="folder for the step's own files; kept over attempts")
    return parser


if __name__ == "__main__":
    report_bugs()
    sys.exit(main())
