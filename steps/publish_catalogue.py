"""Show the catalogue's base models in MLflow Common: `python -m steps.publish_catalogue`.

Reads: the catalogue.
Writes: one registered model `base.<name>` in MLflow for each base, its facts as tags.
Fails when: the catalogue is wrong (2); MLflow does not answer (3).
Safe to repeat because: a model that is there gets the same tags again; none is removed.
"""

from __future__ import annotations

import sys
from typing import Any

from kuznia import settings
from kuznia.contracts.catalogue import BaseModelEntry, Catalogue, load_catalogue
from kuznia.errors import KuzniaError
from kuznia.registry import mlflow_answers, mlflow_client
from kuznia.termination import report_bugs, report_failure


def publish(catalogue: Catalogue, uri: str) -> list[str]:
    """Write every base; the names of the registered models."""
    with mlflow_answers(uri):
        client = mlflow_client(uri)
        return [_publish(client, f"base.{name}", base) for name, base in catalogue.bases.items()]


def _publish(client: Any, name: str, base: BaseModelEntry) -> str:
    from mlflow.exceptions import MlflowException

    facts = base.model_dump(mode="json", exclude_none=True)
    tags = {key: str(value) for key, value in facts.items()}
    try:
        client.create_registered_model(name, tags=tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        for key, value in tags.items():
            client.set_registered_model_tag(name, key, value)
    print(f"publish-catalogue: {name} {base.digest[:12]}", flush=True)
    return name


def main() -> int:
    """Publish, and turn failures into exit codes."""
    try:
        publish(load_catalogue(), settings.tracking_uri())
    except KuzniaError as error:
        return report_failure(error)
    return 0


if __name__ == "__main__":
    report_bugs()
    sys.exit(main())
