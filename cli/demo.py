"""Fine-tune, register, document, serve and ask a small model."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cli.output import print_error, seconds

if TYPE_CHECKING:
    from kuznia.registry import ModelVersion
    from kuznia.store import Store
    from workflows.local import Result
    from workflows.submit import Submission

IMAGES = ("platform", "train", "serve", "gateway")
AT_ONCE = 8
"""Questions that are asked at the same time."""
SHOWN = 6
"""Rows of the table at the end."""
EPILOG = """\b
examples:
  kuznia demo
  kuznia demo --data faq.csv --epochs 3
"""


class Row(NamedTuple):
    """A held-out row and what was answered."""

    messages: list[dict[str, str]]
    expected: str
    base: str
    tuned: str
    """By the training stack."""
    served: str = ""
    """By vLLM."""


@click.command(epilog=EPILOG)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Your own CSV or JSONL of questions and answers.",
)
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), help="Passes over the data.")
def command(data: Path | None, epochs: float | None) -> None:
    """Run the whole chain on a laptop, serve the result and ask it the held-out questions.

    The same command again repeats nothing that is done. Leaves .kuznia/demo.json.
    """
    from kuznia import settings
    from workflows.submit import check

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    spent: dict[str, float] = {}
    path = _spec(data, epochs, settings.home() / "demo")
    check(path)
    with _timed(spent, "environments"):
        _install()
    submission, result = _chain(path, spent)
    outputs = {name.partition(".")[0]: json.loads(text) for name, text in result.outputs.items()}
    version, store = _version(submission, outputs)
    rows = _rows(store, outputs)
    served_at = time.monotonic()
    from cli.gateway import local_table
    from cli.serve import started
    from kuznia.keys.ledger import issue
    from kuznia.serving import free_port
    from kuznia.store import open_store
    from services.gateway.laptop import gateway
    from workflows.environments import envoy

    key, token = issue(open_store(settings.store_uri()), version.tenant, name="demo")
    with started(version, "127.0.0.1", free_port()):
        spent["serve"] = round(time.monotonic() - served_at, 1)
        with (
            _timed(spent, "answers"),
            gateway(lambda: local_table("default"), envoy(), port=free_port()) as gate,
        ):
            longest = submission.spec.evaluation.max_new_tokens
            rows = _ask(gate.url, token, version.served_name, rows, longest)
    spent["total"] = round(time.monotonic() - began, 1)
    report = _report(spent, rows, outputs, version, store, submission.run)
    report["audit"] = _audit(version.tenant, key.jti)
    _write(settings.home() / "demo.json", report)
    _tell(report, rows, version)


def _spec(data: Path | None, epochs: float | None, folder: Path) -> Path:
    import yaml

    from cli.own_data import spec_for, write_spec
    from workflows.environments import ROOT

    template = ROOT / "examples" / "demo" / "train.yaml"
    if data is not None:
        return spec_for(data, template, folder, epochs)
    if epochs is None:
        return template
    spec = yaml.safe_load(template.read_text("utf-8"))
    for key in ("train", "test"):
        spec["data"][key] = str(template.parent / spec["data"][key])
    return write_spec(spec, folder / "train.yaml", epochs)


def _install() -> None:
    from workflows.environments import is_ready, python_of

    missing = [image for image in IMAGES if not is_ready(image)]
    for number, image in enumerate(missing, 1):
        click.echo(f"installing the environment {image} ({number} of {len(missing)})")
        before = time.monotonic()
        python_of(image)
        click.echo(f"installed {image} in {seconds(time.monotonic() - before)}")


def _chain(path: Path, spent: dict[str, float]) -> tuple[Submission, Result]:
    """Run the chain; leaves the process with the chain's exit code if it fails."""
    from cli.watch import watcher
    from workflows import state
    from workflows.submit import submit

    with watcher(sys.stdout) as watching:
        submission, result = submit(path, watching)
    steps = state.read(result.run)["steps"]
    spent.update({name: round(step["seconds"], 1) for name, step in steps.items()})
    if result.exit_code:
        if result.failed:
            for problem in steps[result.failed]["message"].splitlines():
                print_error(problem)
            print_error(f"the log: {state.log_path(result.run, result.failed)}")
        click.echo("the same command goes on from here", err=True)
        raise SystemExit(result.exit_code)
    # The engine took the signals for the run; from here on SIGTERM is Ctrl-C again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return submission, result


def _version(submission: Submission, outputs: dict[str, Any]) -> tuple[ModelVersion, Store]:
    from kuznia import settings
    from kuznia.registry import Registry
    from kuznia.store import open_store

    registered = outputs["register"]
    reference = f"{registered['name']}@{registered['number']}"
    version = Registry(settings.tracking_uri()).find(reference)
    return version, open_store(settings.store_uri())


def _rows(store: Store, outputs: dict[str, Any]) -> list[Row]:
    """The test rows with the answers of base and fine-tuned model from the evaluation."""
    lines = store.read(outputs["evaluate"]["answers"]["key"]).decode().splitlines()
    found = [json.loads(line) for line in lines]
    return [Row(row["prompt"], row["expected"], row["base"], row["candidate"]) for row in found]


def _ask(url: str, token: str, model: str, rows: list[Row], longest: int) -> list[Row]:
    """Every row answered by vLLM through the gateway, greedily."""
    import httpx

    from kuznia import settings
    from kuznia.errors import DependencyError

    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(timeout=600, trust_env=False, headers=headers) as client:

        def answer(row: Row) -> Row:
            body = {
                "model": model,
                "messages": row.messages,
                "temperature": 0,
                "max_tokens": longest,
            }
            try:
                reply = client.post(f"{url}/chat/completions", json=body)
                reply.raise_for_status()
            except httpx.HTTPError as error:
                raise DependencyError(
                    f"{url}: did not answer ({error}); see the logs in "
                    f"{settings.home() / 'gateway'} and {settings.home() / 'serve'}, run again"
                ) from error
            text = reply.json()["choices"][0]["message"]["content"] or ""
            return row._replace(served=text.strip())

        with (
            ThreadPoolExecutor(AT_ONCE) as pool,
            click.progressbar(
                length=len(rows), label=f"asking {len(rows)} held-out questions", file=sys.stderr
            ) as bar,
        ):
            answered = []
            for row in pool.map(answer, rows):
                answered.append(row)
                bar.update(1)
    return answered


def _audit(tenant: str, key: str) -> dict[str, Any]:
    """What the audit log has of this demo: records of its key, and whether the log is whole."""
    from kuznia import settings
    from kuznia.audit.keys import public_keys, public_path
    from kuznia.audit.search import Query, search
    from kuznia.audit.verify import verify
    from kuznia.store import open_store

    store = open_store(settings.store_uri())
    found = list(search(store, Query(tenant=tenant, equal={"key": key})))
    verified = verify(store, public_keys([public_path()]), tenant=tenant)
    tokens = sum(record["tokens_in"] + record["tokens_out"] for record in found)
    return {"records": len(found), "tokens": tokens, "findings": verified.findings}


def _report(
    spent: dict[str, float],
    rows: list[Row],
    outputs: dict[str, Any],
    version: ModelVersion,
    store: Store,
    run: str,
) -> dict[str, Any]:
    from steps.metrics import exact_match

    def score(answers: list[str]) -> float:
        pairs = zip(rows, answers, strict=True)
        return round(sum(exact_match(row.expected, text) for row, text in pairs) / len(rows), 4)

    return {
        "model": version.served_name,
        "version": version.version,
        "run": run,
        "verdict": outputs["evaluate"]["verdict"],
        "test_rows": len(rows),
        "score_base": score([row.base for row in rows]),
        "score_tuned": score([row.tuned for row in rows]),
        "score_served": score([row.served for row in rows]),
        "samples_per_second": outputs["train"]["samples_per_second"],
        "seconds": spent,
        "card": store.uri_of(outputs["model-card"]["readme"]["key"]),
    }


def _write(path: Path, report: dict[str, Any]) -> None:
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)


def _tell(report: dict[str, Any], rows: list[Row], version: ModelVersion) -> None:
    from rich.console import Console
    from rich.table import Table

    from kuznia import settings

    home = settings.home()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(title="held-out questions", show_lines=True)
    for name in ("question", "expected", "base", "fine-tuned, through vLLM"):
        table.add_column(name, overflow="fold", ratio=1)
    for row in rows[:: max(1, len(rows) // SHOWN)][:SHOWN]:
        cells = (row.messages[-1]["content"], row.expected, row.base, row.served)
        table.add_row(*(_short(cell) for cell in cells))
    console.print(table)
    lines = {
        "score": f"{report['score_served']:.2f} through vLLM, {report['score_tuned']:.2f} in "
        f"training, {report['score_base']:.2f} for the base (exact match, "
        f"{report['test_rows']} rows)",
        "verdict": report["verdict"],
        "time": f"{seconds(report['seconds']['total'])} in all, training at "
        f"{report['samples_per_second']:.1f} samples/s",
        "version": version.uri,
        "card": report["card"],
        "audit": f"{report['audit']['records']} records, {report['audit']['tokens']} tokens, "
        + ("; ".join(report["audit"]["findings"]) or "the chain is whole")
        + " (kuznia audit search)",
        "MLflow": f"{settings.tracking_uri()} (kuznia ui)",
        "logs": f"{home / 'runs' / report['run']}, {home / 'serve'}, {home / 'gateway'}",
        "numbers": str(home / "demo.json"),
    }
    for name, text in lines.items():
        click.echo(f"{click.style(name.ljust(8), bold=True)} {text}")
    click.echo(
        "\nvLLM is stopped. Next:\n"
        f"  kuznia serve {version.served_name}     serve it again\n"
        f"  kuznia chat {version.served_name}      talk to it, in another terminal\n"
        f"  kuznia gateway                 keys, limits, guard and audit log before it\n"
        f"  kuznia card {version.served_name}      read its card\n"
        "  make demo DATA=file.csv     the same with questions and answers of your own"
    )


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


@contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    before = time.monotonic()
    try:
        yield
    finally:
        spent[name] = round(time.monotonic() - before, 1)
