"""MLflow's registry of models: who is registered, under which aliases, where the weights are.

A registered model is `<tenant>.<model>`; a version's source is the URI of its folder in the store.
Nothing here writes; the step `register` does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kuznia.errors import DependencyError, InputError

UNREACHABLE = frozenset(
    ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
)
VOLUME = "volume://"
"""Scheme of a source on a cluster's volume, which MLflow's server takes where it refuses file://."""
REFUSED = frozenset(("UNAUTHENTICATED", "PERMISSION_DENIED"))
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""How long MLflow's client tries by itself; after that the engine's retries take over."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered version."""

    name: str
    """`<tenant>.<model>`"""
    number: int
    uri: str
    """The version's folder in the store."""
    run_id: str | None
    """MLflow's run that trained it."""
    aliases: tuple[str, ...]
    tags: dict[str, str]
    created: int
    """Milliseconds since 1970."""

    @property
    def tenant(self) -> str:
        return self.name.partition(".")[0]

    @property
    def model(self) -> str:
        return self.name.partition(".")[2]

    @property
    def served_name(self) -> str:
        """The name that clients of the OpenAI API ask for."""
        return f"{self.tenant}/{self.model}"

    @property
    def version(self) -> str:
        """The version's own name, 12 hex digits."""
        return self.tags.get("version", "")

    @property
    def digest(self) -> str:
        """Digest of its manifest."""
        return self.tags.get("digest.sha256", "")

    @property
    def scores(self) -> dict[str, float]:
        """Mean of each metric on the test rows."""
        start = "score."
        return {
            key.removeprefix(start): float(value)
            for key, value in sorted(self.tags.items())
            if key.startswith(start)
        }


@dataclass(frozen=True)
class RegisteredModel:
    """One registered model, as a list of all models shows it."""

    name: str
    """`<tenant>.<model>`"""
    created: int
    """Milliseconds since 1970; tells it from a deleted one of the same name."""
    aliases: dict[str, int]
    """Each alias with the number of the version that it points to."""
    newest: dict[int, ModelVersion]
    """The newest version by its number; it comes with the list."""


def mlflow_client(uri: str) -> Any:
    """MLflow's client for `uri`, its own retries bounded; use it inside `mlflow_answers`."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def mlflow_answers(uri: str) -> Iterator[None]:
    """Turn MLflow's silence or refusal into a DependencyError that names the address."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        raise DependencyError(
            f"MLflow at {uri}: the database does not work ({getattr(error, 'orig', error)}); check "
            "the file and the disk, then run the same command again"
        ) from error
    except MlflowException as error:
        first = str(error).partition("\n")[0]
        if error.error_code in REFUSED:
            raise DependencyError(
                f"MLflow at {uri} refuses ({first}); check MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD or the token"
            ) from error
        if error.error_code in UNREACHABLE:
            raise DependencyError(
                f"MLflow at {uri} does not answer ({_cause(first)}); start it or correct "
                "MLFLOW_TRACKING_URI, then run the same command again"
            ) from error
        raise


class Registry:
    """What MLflow at one address knows about models.

    Every method raises DependencyError when it does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with mlflow_answers(uri):
            self.client = mlflow_client(uri)

    def versions(self, *names: str) -> list[ModelVersion]:
        """Every version of the models `names`, of all without any; by name, newest first."""
        wanted: list[str | None] = [f"name='{name}'" for name in names]
        with mlflow_answers(self.uri):
            found = [
                _version(version, _aliases(model, version))
                for which in wanted or [None]
                for model in _pages(self.client.search_registered_models, filter_string=which)
                for version in _pages(
                    self.client.search_model_versions, filter_string=f"name='{model.name}'"
                )
            ]
        return sorted(found, key=lambda version: (version.name, -version.number))

    def models(self) -> list[RegisteredModel]:
        """Every model with its aliases: one question for 1000 models, none for a version."""
        with mlflow_answers(self.uri):
            return [
                RegisteredModel(
                    name=model.name,
                    created=model.creation_timestamp,
                    aliases={alias: int(number) for alias, number in model.aliases.items()},
                    newest={
                        int(version.version): _version(version, _aliases(model, version))
                        for version in model.latest_versions
                    },
                )
                for model in _pages(self.client.search_registered_models, max_results=1000)
            ]

    def version(self, name: str, number: int) -> ModelVersion | None:
        """One version; None if there is none of that number."""
        from mlflow.exceptions import MlflowException

        with mlflow_answers(self.uri):
            try:
                found = self.client.get_model_version(name, str(number))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        return _version(found, tuple(sorted(found.aliases)))

    def find(self, reference: str) -> ModelVersion:
        """The version that `reference` means.

        MODEL[@WHICH]: the model as `model`, `tenant/model` or `tenant.model`; WHICH an alias,
        a version's name (or its first digits) or MLflow's number. Without WHICH it is the alias
        `staging`, or the newest version where nothing is staged. Raises InputError with the
        names that exist if there is no such model or version.
        """
        wanted, _, which = reference.partition("@")
        every = self.versions()
        versions = self._of_model(wanted.replace("/", "."), every)
        if not which:
            staged = [version for version in versions if "staging" in version.aliases]
            return (staged or versions)[0]
        for version in versions:
            if which in version.aliases or which == str(version.number):
                return version
        named = [version for version in versions if version.version.startswith(which)]
        if len(named) == 1:
            return named[0]
        known = ", ".join(
            "/".join((*version.aliases, version.version)) for version in versions[:10]
        )
        raise InputError(
            f"{reference}: {versions[0].name} has no version {which!r}; choose one of {known}"
        )

    def metrics(self, run_id: str) -> dict[str, float]:
        """The last value of every metric of a run."""
        with mlflow_answers(self.uri):
            return dict(self.client.get_run(run_id).data.metrics)

    def _of_model(self, wanted: str, every: list[ModelVersion]) -> list[ModelVersion]:
        found = [version for version in every if wanted in (version.name, version.model)]
        names = sorted({version.name for version in found})
        if len(names) == 1:
            return found
        if names:
            raise InputError(f"{wanted}: is ambiguous; choose one of {', '.join(names)}")
        known = ", ".join(sorted({version.name for version in every}))
        hint = f"choose one of {known}" if known else "make one with `kuznia run train.yaml`"
        raise InputError(f"{wanted}: no such model in MLflow at {self.uri}; {hint}")


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _aliases(model: Any, version: Any) -> tuple[str, ...]:
    # search_model_versions leaves aliases out; the model has them as {alias: number}.
    number = str(version.version)
    return tuple(sorted(alias for alias, to in model.aliases.items() if str(to) == number))


def _version(version: Any, aliases: tuple[str, ...]) -> ModelVersion:
    return ModelVersion(
        name=version.name,
        number=int(version.version),
        uri=version.source.replace(VOLUME, "file://", 1),
        run_id=version.run_id or None,
        aliases=aliases,
        tags=dict(version.tags),
        created=version.creation_timestamp,
    )


def _cause(message: str) -> str:
    """The innermost reason of MLflow's long message."""
    for known in ("Connection refused", "timed out", "Name or service not known", "too many 5"):
        if known in message:
            return known
    return message[:200]
