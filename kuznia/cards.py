"""Cards: made from what the steps found. `card_views` writes and reads them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kuznia import __version__
from kuznia.contracts.base import Contract, digest_of, parse
from kuznia.contracts.card import (
    Base,
    Card,
    CardMetric,
    Data,
    Evaluation,
    Gpai,
    Identity,
    Leaf,
    Parity,
    Purpose,
    Registration,
    Source,
    Split,
    Training,
    Transparency,
)
from kuznia.contracts.steps import File, ModelCardInputs, SplitReport

T = TypeVar("T")

FOLDER = Path(__file__).parents[1] / "model-cards"
RULES = FOLDER / "rules" / "2026-07-27.yaml"
"""The law in force, as data."""


class GpaiRule(Contract):
    source: str
    general_purpose_flop: float
    base_share: float


class Art50Note(Contract):
    applies_from: Any
    note: str


class Rules(Contract):
    """A dated rule file."""

    law: str
    gpai: GpaiRule
    art50: tuple[Art50Note, ...]


def load_rules(path: Path = RULES) -> Rules:
    """The rule file at `path`; InputError with every fault if it is not one."""
    rules: Rules = parse(Rules, yaml.safe_load(path.read_text("utf-8")), str(path))
    return rules


def card_key(tenant: str, model: str, version: str) -> str:
    """Folder of a version's card in the store; the version's own folder never changes."""
    return f"cards/{tenant}/{model}/{version}"


def build_card(inputs: ModelCardInputs, rules: Rules) -> Card:
    """The card of the version that `inputs` describe; equal inputs give an equal card."""
    plan, export, registration = inputs.plan, inputs.export, inputs.registration
    spec, human = plan.spec, plan.spec.card
    rule_digest = hashlib.sha256(RULES.read_bytes()).hexdigest()
    return Card(
        law=_leaf(rules.law, "config", f"{RULES.name} sha256:{rule_digest}"),
        identity=Identity(
            tenant=_leaf(spec.tenant, "config", "spec tenant"),
            model=_leaf(spec.model, "config", "spec model"),
            version=_leaf(export.version, "measured", f"sha256:{export.folder.digest}"),
            manifest_sha256=_leaf(export.folder.digest, "measured", export.folder.key),
            mode=_leaf(export.mode, "measured", "export"),
            bytes=_leaf(export.folder.bytes, "measured", "export"),
            uri=_leaf(export.folder.key, "measured", "export"),
            run=_leaf(plan.run, "config", f"spec sha256:{digest_of(spec)}"),
            kuznia=_leaf(__version__, "measured", "model-card"),
        ),
        registration=Registration(
            name=_leaf(registration.name, "measured", "register"),
            number=_leaf(registration.number, "measured", "register"),
        ),
        purpose=Purpose(
            statement=_leaf(human.purpose, "human", "spec card.purpose"),
            owner=_leaf(human.owner, "human", "spec card.owner"),
            risk=_leaf(human.risk, "human", "spec card.risk"),
            users=_human(human.users, "users", "say who is meant to use the model"),
            out_of_scope=_human(human.out_of_scope, "out_of_scope", "say what it is not for"),
            limitations=_human(human.limitations, "limitations", "say what it does badly"),
        ),
        base=_base(inputs),
        training=_training(inputs),
        gpai=_gpai(inputs, rules.gpai),
        data=_data(inputs),
        evaluation=_evaluation(inputs),
        parity=_parity(inputs),
        art50=Transparency(
            notes=_leaf(
                tuple(f"{note.note} Applies from {note.applies_from}." for note in rules.art50),
                "config",
                RULES.name,
            )
        ),
    )


def _leaf(value: T, source: Source, evidence: str | None = None) -> Leaf[T]:
    return Leaf(value=value, source=source, evidence=evidence)


def _human(value: str | None, key: str, ask: str) -> Leaf[str]:
    if value is None or not value.strip():
        return Leaf(source="human", missing=f"{ask}: set card.{key} in the run spec")
    return _leaf(value, "human", f"spec card.{key}")


def _base(inputs: ModelCardInputs) -> Base:
    base, name = inputs.plan.base, inputs.plan.spec.base
    where = f"catalogue bases.{name}"
    return Base(
        name=_leaf(name, "config", "spec base"),
        relation=_leaf(
            "adapter" if inputs.export.mode == "adapter" else "finetune", "derived", "identity.mode"
        ),
        origin=_leaf(base.source, "config", where),
        manifest_sha256=_leaf(
            inputs.fetch_base.base.digest, "measured", inputs.fetch_base.base.key
        ),
        licence=_leaf(base.licence, "config", where),
        parameters=_leaf(base.parameters, "config", where),
        context_length=_leaf(base.context_length, "config", where),
        languages=_leaf(base.languages, "config", where)
        if base.languages
        else Leaf(source="config", missing=f"set languages in {where}"),
        pretraining_flop=_leaf(base.pretraining_flop, "config", where)
        if base.pretraining_flop
        else Leaf(source="config", missing=f"unknown; set pretraining_flop in {where}"),
        pretraining_flop_basis=_leaf(base.pretraining_flop_basis, "config", where),
    )


def _training(inputs: ModelCardInputs) -> Training:
    plan, train = inputs.plan, inputs.train
    weights = f"sha256:{train.weights.digest}"
    return Training(
        method=_leaf(plan.spec.method, "config", "spec method"),
        seed=_leaf(plan.spec.seed, "config", "spec seed"),
        hyperparameters=_leaf(plan.trainer, "config", "plan"),
        hardware=_leaf(plan.hardware.facts(), "config", "plan"),
        libraries=_leaf(train.libraries, "measured", "train"),
        steps=_leaf(train.steps, "measured", weights),
        epochs=_leaf(train.epochs, "measured", weights),
        final_loss=_leaf(train.final_loss, "measured", train.loss_curve.key),
        loss_curve_sha256=_leaf(train.loss_curve.sha256, "measured", train.loss_curve.key),
        flop=_leaf(train.flop, "derived", "6 x parameters x tokens"),
        duration_s=_leaf(round(train.seconds, 1), "measured", "train"),
        samples_per_second=_leaf(round(train.samples_per_second, 2), "measured", "train"),
        resumed=_leaf(train.resumed, "measured", "train"),
        mlflow_run_id=_leaf(train.mlflow_run_id, "measured", "train"),
    )


def _gpai(inputs: ModelCardInputs, rule: GpaiRule) -> Gpai:
    known, spent = inputs.plan.base.pretraining_flop, inputs.train.flop
    threshold = (known or rule.general_purpose_flop) / rule.base_share
    if known is None:
        ratio: Leaf[float] = Leaf(
            source="derived", missing="the base's FLOP are unknown; see base.pretraining_flop"
        )
        why = (
            f"the base's FLOP are unknown, so 1/{rule.base_share:g} of "
            f"{rule.general_purpose_flop:.0e} is the threshold"
        )
    else:
        ratio = _leaf(spent / known, "derived", "training.flop / base.pretraining_flop")
        why = f"the threshold is 1/{rule.base_share:g} of the base's {known:.2e} FLOP"
        if known < rule.general_purpose_flop:
            why += (
                f"; the base itself is below the {rule.general_purpose_flop:.0e} FLOP "
                "that mark a general-purpose model"
            )
    return Gpai(
        ratio=ratio,
        threshold_flop=_leaf(threshold, "derived", rule.source),
        above_threshold=_leaf(spent > threshold, "derived", "training.flop"),
        basis=_leaf(f"{why}. {rule.source}", "derived", RULES.name),
    )


def _data(inputs: ModelCardInputs) -> Data:
    check, human = inputs.data_check, inputs.plan.spec.card
    return Data(
        origin=_human(human.data_origin, "data_origin", "say where the rows come from"),
        licence=_human(human.data_licence, "data_licence", "say under which licence they are"),
        format=_leaf(inputs.plan.spec.data.format, "config", "spec data.format"),
        fingerprint=_leaf(check.fingerprint, "measured", "data-check"),
        train=_split(check.train, check.train_report),
        test=_split(check.test, check.test_report),
        overlap=_leaf(check.overlap, "measured", "data-check"),
    )


def _split(file: File, report: SplitReport) -> Split:
    dropped = {name: getattr(report, name) for name in ("empty", "over_long", "duplicates")}
    tokens = {name: getattr(report, f"tokens_{name}") for name in ("p50", "p95", "max")}
    return Split(
        rows=_leaf(report.rows, "measured", file.key),
        sha256=_leaf(file.sha256, "measured", file.key),
        dropped=_leaf(dropped, "measured", "data-check"),
        tokens=_leaf(tokens, "measured", "data-check"),
    )


def _evaluation(inputs: ModelCardInputs) -> Evaluation:
    result, gate = inputs.evaluate, inputs.plan.spec.evaluation.gate
    answers = result.answers.key
    metrics = {}
    for name, metric in result.metrics.items():
        rule = gate.get(name)
        metrics[str(name)] = CardMetric(
            value=_leaf(metric.candidate, "measured", answers),
            interval=_leaf((metric.candidate_low, metric.candidate_high), "measured", answers),
            base=_leaf(metric.base, "measured", answers),
            difference=_leaf(metric.difference, "measured", answers),
            difference_interval=_leaf((metric.low, metric.high), "measured", answers),
            gate=_leaf(rule.model_dump(exclude_none=True), "config", f"spec evaluation.gate.{name}")
            if rule
            else Leaf(
                source="config",
                missing=f"no threshold was set before the run: set evaluation.gate.{name} "
                "in the run spec",
            ),
        )
    return Evaluation(
        test_rows=_leaf(result.test_rows, "measured", answers),
        dataset_sha256=_leaf(inputs.data_check.test.sha256, "measured", inputs.data_check.test.key),
        answers_sha256=_leaf(result.answers.sha256, "measured", answers),
        verdict=_leaf(str(result.verdict), "derived", "evaluation.metrics"),
        reasons=_leaf(result.reasons, "derived", "evaluation.metrics"),
        metrics=metrics,
    )


def _parity(inputs: ModelCardInputs) -> Parity:
    verify = inputs.verify
    return Parity(
        passed=_leaf(verify.passed, "derived", "verify"),
        reasons=_leaf(verify.reasons, "derived", "verify"),
        template_rows=_leaf(verify.template_rows, "measured", "verify"),
        template_equal=_leaf(verify.template_equal, "measured", "verify"),
        positions=_leaf(verify.parity_positions, "measured", "verify"),
        top1_agreement=_leaf(verify.top1_agreement, "measured", "verify"),
        mean_kl=_leaf(verify.mean_kl, "measured", "verify"),
        max_kl=_leaf(verify.max_kl, "measured", "verify"),
        base_mean_kl=_leaf(verify.base_mean_kl, "measured", "verify"),
        unchanged_share=_leaf(inputs.export.unchanged_share, "measured", "export"),
    )
