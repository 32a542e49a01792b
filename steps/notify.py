"""Tell how a run ended: `python -m steps.notify --run NAME --status Failed --failures ...`.

Argo's exit handler, not a step of the chain. Prints the summary as one line of JSON and sends it
to the receivers that the environment names. Exit codes: 0 told, or nobody to tell; 3 a receiver
failed; 2 its setting is wrong. After a run that succeeded the last attempt ends with 0 all the
same, because Argo would take its failure for the run's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from kuznia import settings
from kuznia.contracts.base import canonical_json, digest_of
from kuznia.errors import InputError, KuzniaError
from kuznia.failures import Failure, failures
from kuznia.notifications import PLACES, Message, Summary, deliver, message_about, receivers
from kuznia.store import Store, open_store
from kuznia.termination import report, report_bugs

_NAME = r"[a-z0-9][a-z0-9-]{0,39}"
_RESULTS: dict[str, Any] = {"Succeeded": "success", "Failed": "failure", "Error": "error"}
_EVIDENCE = (
    *("data-check/result", "fetch-base/result", "train/started", "train/result"),
    *("evaluate/result", "export/result"),
)


def main(argv: list[str] | None = None) -> int:
    """Sum up, print, and tell whoever is to know."""
    arguments = _parser().parse_args(argv)
    about = _about(arguments.config, arguments.namespace)
    prefix = f"runs/{about['tenant']}/{arguments.run}"
    store, evidence = _evidence(prefix)
    summary = _summary(arguments, about, evidence)
    print(canonical_json(summary).decode(), flush=True)
    if arguments.outputs:
        arguments.outputs.parent.mkdir(parents=True, exist_ok=True)
        arguments.outputs.write_bytes(canonical_json(summary))
    end = [summary.run, arguments.uid or [summary.result, summary.reason]]
    message = message_about(summary, digest_of(end)[:16])
    errors = _tell(message, store, f"{prefix}/notify")
    if not errors:
        return 0
    problems = [line for error in errors for line in str(error).splitlines()]
    code = max(error.exit_code for error in errors)
    report(problems, retried=True)
    last = code == InputError.exit_code or arguments.attempt >= arguments.retries
    return 0 if last and summary.result == "success" else code


def _summary(
    arguments: argparse.Namespace, about: dict[str, str], evidence: dict[str, Any]
) -> Summary:
    result = _RESULTS[arguments.status]
    failed = _failures(arguments.failures, arguments.workflow or arguments.run)
    first = failed[0] if failed and result != "success" else None
    made = {key.partition("/")[0]: record.get("outputs", {}) for key, record in evidence.items()}
    trained = made.get("train", {})
    link = os.environ.get("KUZNIA_RUN_URL", "")
    for name in ("namespace", "run"):
        link = link.replace(f"{{{name}}}", getattr(arguments, name))
    return Summary(
        run=arguments.run,
        **about,
        result=result,
        reason="" if result == "success" else _reason(failed),
        step=first.step if first else "",
        fault=first.kind if first else "",
        exit_code=first.exit_code if first else None,
        seconds=arguments.seconds,
        version=made.get("export", {}).get("version", ""),
        verdict=made.get("evaluate", {}).get("verdict", ""),
        trained=bool(trained),
        queue_seconds=_queued(evidence),
        samples_per_second=trained.get("samples_per_second", 0.0),
        link=link,
    )


def _about(config: str, namespace: str) -> dict[str, str]:
    """Tenant, model and owner as far as a run spec says them, which may be what is wrong."""
    try:
        spec = yaml.safe_load(config)
    except yaml.YAMLError:
        spec = dict(re.findall(r"^(tenant|model): *(\S+) *$", config, re.M))
    spec = spec if isinstance(spec, dict) else {}
    card = spec.get("card")
    found = {name: str(spec.get(name, "")) for name in ("tenant", "model")}
    # A name becomes part of a key in the store, so nothing else passes.
    found = {name: text if re.fullmatch(_NAME, text) else "" for name, text in found.items()}
    found["tenant"] = settings.tenant() or found["tenant"] or namespace.removesuffix("-training")
    owner = str(card.get("owner", "")) if isinstance(card, dict) else ""
    return {**found, "owner": " ".join(owner.split())[:100]}


def _failures(text: str, workflow: str) -> list[Failure]:
    try:
        return failures(text, workflow)
    except ValueError as error:
        print(f"--failures: {error}; the reason stays unknown", file=sys.stderr)
        return []


def _reason(failed: list[Failure]) -> str:
    if not failed:
        return "no step failed; see the workflow's message in Argo"
    others = ", ".join(failure.step for failure in failed[1:])
    return failed[0].sentence() + (f"; {others} failed, too" if others else "")


def _evidence(prefix: str) -> tuple[Store | None, dict[str, Any]]:
    """The store, and what the steps left there: results, and when training first started.

    No store where there is none that answers: this may be a run that failed for want of it.
    """
    found: dict[str, Any] = {}
    if not os.environ.get("KUZNIA_STORE") or "//" in prefix:
        return None, found
    try:
        store = open_store(settings.store_uri())
        for key in _EVIDENCE:
            with suppress(FileNotFoundError):
                found[key] = json.loads(store.read(f"{prefix}/{key}.json"))
    except (KuzniaError, OSError) as error:
        print(f"{error}; going on without the store", file=sys.stderr)
        return None, found
    return store, found


def _queued(evidence: dict[str, Any]) -> float:
    """Seconds between the end of what training needs and its own first start."""
    try:
        ready = max(evidence[f"{step}/result"]["finished"] for step in ("data-check", "fetch-base"))
        return max(0.0, round(float(evidence["train/started"]["at"] - ready), 1))
    except KeyError:
        return 0.0


def _tell(message: Message, store: Store | None, folder: str) -> list[KuzniaError]:
    """Send to every receiver that has not had it yet; what went wrong."""
    try:
        found = receivers()
    except InputError as error:
        return [error]
    if not found:
        print(f"nobody to tell: none of {', '.join(PLACES)} is set", flush=True)
    errors: list[KuzniaError] = []
    for receiver in found:
        mark = f"{folder}/{message.key}.{receiver.name}"
        try:
            if store and store.exists(mark):
                print(f"{receiver.name}: told before", flush=True)
                continue
            deliver(receiver, message)
        except KuzniaError as error:
            errors.append(error)
            continue
        print(f"{receiver.name}: told", flush=True)
        try:
            if store:
                store.create(mark, b"")
        except KuzniaError as error:
            print(f"{error}; another attempt would tell it again", file=sys.stderr)
    return errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m steps.notify", description=__doc__)
    parser.add_argument("--run", required=True, help="name of the run in the store")
    parser.add_argument("--workflow", help="name of the workflow, if it is another")
    parser.add_argument("--uid", help="uid of the workflow: tells two runs of one name apart")
    parser.add_argument("--namespace", default="", help="where it ran")
    parser.add_argument("--config", default="", help="the run spec's text, right or wrong")
    parser.add_argument("--status", required=True, choices=_RESULTS, help="{{workflow.status}}")
    parser.add_argument("--failures", default="null", help="{{workflow.failures}}")
    parser.add_argument("--seconds", type=float, default=0.0, help="{{workflow.duration}}")
    parser.add_argument("--attempt", type=int, default=0, help="{{retries}}: 0 for the first")
    parser.add_argument("--retries", type=int, default=0, help="attempts after the first")
    parser.add_argument("--outputs", type=Path, help="where the summary goes, as JSON")
    return parser


if __name__ == "__main__":
    report_bugs()
    sys.exit(main())
