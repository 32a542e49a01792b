"""The catalogue's bases in MLflow Common."""

from __future__ import annotations

import pytest

from kuznia.contracts.catalogue import load_catalogue
from kuznia.registry import mlflow_client
from steps.publish_catalogue import main, publish


def test_every_base_is_a_model_with_its_facts(
    mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    assert main() == 0
    client = mlflow_client(mlflow_database)
    client.set_registered_model_tag("base.smollm2-135m-instruct", "licence", "none")
    catalogue = load_catalogue()
    assert publish(catalogue, mlflow_database) == ["base.smollm2-135m-instruct"]
    found = client.get_registered_model("base.smollm2-135m-instruct").tags
    base = catalogue.bases["smollm2-135m-instruct"]
    assert (found["licence"], found["digest"]) == (base.licence, base.digest)
