"""Register the version in MLflow; its weights stay in the store."""

from __future__ import annotations

from typing import Any

from kuznia import __version__, settings
from kuznia.contracts.steps import RegisterInputs, RegisterOutputs
from kuznia.errors import InputError
from kuznia.registry import VOLUME, mlflow_answers, mlflow_client
from steps.context import Context

STAGING = "staging"


def run(inputs: RegisterInputs, context: Context) -> RegisterOutputs:
    """Make the model version `<tenant>.<model>` with lineage tags, and stage it if it passed.

    Staged (alias `staging`) is a version whose verdict is promote and whose verify passed; any
    other is registered as a candidate without alias, and a line says why. An alias is never
    taken away here.

    Reads: the outputs of the steps before.
    Writes: registered model, model version, tags, alias, and scores on the training's MLflow run.
    Fails when: MLflow does not answer (3), or refuses the store's address as a source (2).
    Safe to repeat because: the version with the same content is found by its tag and completed.
    """
    spec = inputs.plan.spec
    name = f"{spec.tenant}.{spec.model}"
    objections = _objections(inputs)
    with mlflow_answers(context.tracking_uri):
        client = mlflow_client(context.tracking_uri)
        _log_scores(client, inputs)
        _create_model(client, name, inputs)
        number = _find(client, name, inputs.export.version)
        if number is None:
            number = _create(client, name, inputs, context)
        else:
            _retag(client, name, number, inputs)
        if not objections:
            _stage(client, name, number)
        aliases = tuple(sorted(client.get_model_version(name, str(number)).aliases))
    for objection in objections:
        print(f"register: not staged: {objection}", flush=True)
    print(f"register: {name} version {number} ({inputs.export.version})", flush=True)
    return RegisterOutputs(name=name, number=number, version=inputs.export.version, aliases=aliases)


def _objections(inputs: RegisterInputs) -> list[str]:
    """Why the version is not staged; empty if it is."""
    found = []
    if inputs.evaluate.verdict != "promote":
        why = "; ".join(inputs.evaluate.reasons)
        found.append(f"the verdict is {inputs.evaluate.verdict} ({why})")
    if not inputs.verify.passed:
        found.append(f"verify did not pass ({'; '.join(inputs.verify.reasons)})")
    return found


def _tags(inputs: RegisterInputs) -> dict[str, str]:
    """What the version says about itself, whoever looks."""
    plan, export = inputs.plan, inputs.export
    return {
        "version": export.version,
        "digest.sha256": export.folder.digest,
        "mode": export.mode,
        "base_model": plan.spec.base,
        "base_digest": inputs.fetch_base.base.digest,
        "base_key": inputs.fetch_base.base.key,
        "data_fingerprint": inputs.data_check.fingerprint,
        "method": plan.spec.method,
        "kuznia": __version__,
        **_findings(inputs),
    }


def _findings(inputs: RegisterInputs) -> dict[str, str]:
    """What a later run that makes the same content may find anew."""
    adapter = inputs.export.mode == "adapter"
    return {
        "run": inputs.plan.run,
        "answers_key": inputs.verify.answers.key,
        "answers_sha256": inputs.verify.answers.sha256,
        **({"lora_rank": str(inputs.plan.trainer["lora_rank"])} if adapter else {}),
        "eval.verdict": inputs.evaluate.verdict,
        "verify.passed": str(inputs.verify.passed).lower(),
        **{f"score.{key}": f"{value:.6g}" for key, value in _scores(inputs).items()},
    }


def _scores(inputs: RegisterInputs) -> dict[str, float]:
    scores = {}
    for metric, result in inputs.evaluate.metrics.items():
        scores[str(metric)] = result.candidate
        scores[f"{metric}.base"] = result.base
    return scores


def _log_scores(client: Any, inputs: RegisterInputs) -> None:
    run_id = inputs.train.mlflow_run_id
    logged = client.get_run(run_id).data.metrics
    for metric, result in inputs.evaluate.metrics.items():
        for key, value in (
            (f"eval_{metric}", result.candidate),
            (f"eval_{metric}_base", result.base),
        ):
            if key not in logged:
                client.log_metric(run_id, key, value)


def _create_model(client: Any, name: str, inputs: RegisterInputs) -> None:
    from mlflow.exceptions import MlflowException

    spec = inputs.plan.spec
    tags = {"tenant": spec.tenant, "model": spec.model, "owner": spec.card.owner}
    try:
        client.create_registered_model(name, tags=tags, description=spec.card.purpose)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find(client: Any, name: str, version: str) -> int | None:
    found = client.search_model_versions(f"name='{name}' and tags.version='{version}'")
    return min((int(entry.version) for entry in found), default=None)


def _create(client: Any, name: str, inputs: RegisterInputs, context: Context) -> int:
    from mlflow.exceptions import MlflowException

    source = context.store.uri_of(inputs.export.folder.key)
    if settings.in_a_pod():
        # A server takes no local folder; this one is a volume that whoever reads it mounts, too.
        source = source.replace("file://", VOLUME, 1)
    tags = {**_tags(inputs), "lifecycle": "candidate"}
    try:
        made = client.create_model_version(
            name, source, run_id=inputs.train.mlflow_run_id, tags=tags
        )
    except MlflowException as error:
        if "Invalid model version source" not in str(error):
            raise
        raise InputError(
            f"MLflow at {context.tracking_uri}: refuses {source} as a model's source, since a "
            "server takes no local folder; set KUZNIA_STORE to s3:// or gs://, or unset "
            "MLFLOW_TRACKING_URI to register in the local database"
        ) from error
    return int(made.version)


def _retag(client: Any, name: str, number: int, inputs: RegisterInputs) -> None:
    has = client.get_model_version(name, str(number)).tags
    for key, value in _findings(inputs).items():
        if has.get(key) != value:
            client.set_model_version_tag(name, str(number), key, value)


def _stage(client: Any, name: str, number: int) -> None:
    """Move the alias; only tags that this step set are touched."""
    former = client.get_registered_model(name).aliases.get(STAGING)
    if former is not None and int(former) != number:
        _move(client, name, int(former), was=STAGING, to="candidate")
    client.set_registered_model_alias(name, STAGING, str(number))
    _move(client, name, number, was="candidate", to=STAGING)


def _move(client: Any, name: str, number: int, *, was: str, to: str) -> None:
    tags = client.get_model_version(name, str(number)).tags
    if tags.get("lifecycle") == was:
        client.set_model_version_tag(name, str(number), "lifecycle", to)
