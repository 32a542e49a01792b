"""Show registered models, or all about one version or run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from cli.output import print_json, print_table

if TYPE_CHECKING:
    from kuznia.registry import ModelVersion
    from kuznia.store import Store

EPILOG = """\b
examples:
  kuznia show                       every model with its versions
  kuznia show support@staging       one version: lineage, scores, where things are
  kuznia show support-3f2a91c0      one run: what each step found
"""


@click.command(epilog=EPILOG)
@click.argument("what", metavar="[MODEL[@VERSION] | RUN]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(what: str | None, as_json: bool) -> None:
    """List what is registered, or tell everything about one version or run."""
    from kuznia import settings
    from kuznia.registry import Registry
    from kuznia.store import open_store

    if what and "@" not in what:
        store = open_store(settings.store_uri())
        if key := find_run(store, what):
            found = run_facts(store, key)
            print_json(found) if as_json else _print_facts(found)
            return
    registry = Registry(settings.tracking_uri())
    if what:
        facts = version_facts(registry.find(what))
        print_json(facts) if as_json else _print_facts(facts)
        return
    versions = registry.versions()
    if as_json:
        print_json([version_facts(version) for version in versions])
    elif versions:
        print_table(
            ("model", "version", "number", "aliases", "verdict", "scores"),
            [_row(version) for version in versions],
        )
    else:
        click.echo("no model is registered yet; make one with `kuznia run train.yaml`")


def find_run(store: Store, run: str) -> str | None:
    """The store's prefix of a run, or None."""
    for tenant in store.folders("runs"):
        if run in store.folders(f"runs/{tenant}"):
            return f"runs/{tenant}/{run}"
    return None


def run_facts(store: Store, prefix: str) -> dict[str, Any]:
    """What each finished step of a run found; steps without a result are left out."""
    from steps.__main__ import STEPS

    steps = {}
    for step in STEPS:
        try:
            steps[step] = json.loads(store.read(f"{prefix}/{step}/result.json"))["outputs"]
        except FileNotFoundError:
            continue
    found: dict[str, Any] = {"run": prefix.rpartition("/")[2], "where": store.uri_of(prefix)}
    if train := steps.get("train"):
        found["training"] = {
            key: train[key]
            for key in ("steps", "epochs", "final_loss", "seconds", "samples_per_second", "resumed")
        }
        found["weights"] = store.uri_of(train["weights"]["key"])
        found["mlflow_run"] = train["mlflow_run_id"]
    if evaluate := steps.get("evaluate"):
        found["verdict"] = evaluate["verdict"]
        found["reasons"] = evaluate["reasons"]
        found["scores"] = {
            name: {key: metric[key] for key in ("base", "candidate", "low", "high")}
            for name, metric in evaluate["metrics"].items()
        }
        found["answers"] = store.uri_of(evaluate["answers"]["key"])
    if export := steps.get("export"):
        found["version"] = export["version"]
        found["weights_of_version"] = store.uri_of(export["folder"]["key"])
    if verify := steps.get("verify"):
        found["verify"] = {"passed": verify["passed"], "reasons": verify["reasons"]}
    if register := steps.get("register"):
        found["registered"] = register
    if card := steps.get("model-card"):
        found["card"] = store.uri_of(card["card"]["key"])
        found["missing"] = card["missing"]
    found["finished_steps"] = list(steps)
    return found


def version_facts(version: ModelVersion) -> dict[str, Any]:
    """Everything the registry says about a version, by plain names."""
    from datetime import UTC, datetime

    from kuznia.cards import card_key
    from kuznia.store import root_and_key

    tags = version.tags
    root, _ = root_and_key(version.uri)
    return {
        "model": version.name,
        "version": version.version,
        "number": version.number,
        "aliases": list(version.aliases),
        "lifecycle": tags.get("lifecycle", ""),
        "registered": datetime.fromtimestamp(version.created / 1000, UTC).isoformat("T", "seconds"),
        "verdict": tags.get("eval.verdict", ""),
        "verified": tags.get("verify.passed") == "true",
        "scores": version.scores,
        "mode": tags.get("mode", ""),
        "where": version.uri,
        "digest": version.digest,
        "base": tags.get("base_model", ""),
        "base_digest": tags.get("base_digest", ""),
        "data_fingerprint": tags.get("data_fingerprint", ""),
        "run": tags.get("run", ""),
        "mlflow_run": version.run_id,
        "card": f"{root}/{card_key(version.tenant, version.model, version.version)}/card.yaml",
    }


def _row(version: ModelVersion) -> tuple[str, ...]:
    scores = ", ".join(
        f"{name} {value:.3f}" for name, value in version.scores.items() if "." not in name
    )
    aliases = ", ".join(version.aliases) or "-"
    verdict = version.tags.get("eval.verdict", "-")
    return version.name, version.version, str(version.number), aliases, verdict, scores


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        for index, line in enumerate(_lines(value)):
            label = key.replace("_", " ") if index == 0 else ""
            click.echo(f"{click.style(label.ljust(width), bold=True)}  {line}")


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}: {_text(part)}" for key, part in value.items()] or ["-"]
    if isinstance(value, list | tuple):
        return [_text(part) for part in value] or ["-"]
    return [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(_text(part) for part in value) or "-"
    return str(value) if value not in (None, "") else "-"
