"""Finding registered versions by what people call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuznia.errors import DependencyError, InputError
from kuznia.registry import Registry, mlflow_client


@pytest.fixture
def registry(mlflow_database: str) -> Registry:
    """acme.support with three versions, beta.support with one, and a prompt, which is no model."""
    client = mlflow_client(mlflow_database)
    for name, versions in {
        "acme.support": ("aaaa00000001", "aaaa00000002", "bbbb00000003"),
        "beta.support": ("cccc00000001",),
        "acme.sales": ("dddd00000001",),
    }.items():
        client.create_registered_model(name)
        for version in versions:
            tags = {"version": version, "score.exact_match": "0.5", "score.exact_match.base": "0"}
            source = f"s3://bucket/models/{name.replace('.', '/')}/{version}"
            client.create_model_version(name, source, tags=tags)
    client.set_registered_model_alias("acme.support", "staging", "2")
    client.set_registered_model_alias("acme.support", "production", "1")
    client.register_prompt("greeting", "Hello {{name}}")
    return Registry(mlflow_database)


def test_all_versions_newest_first_with_aliases_and_without_prompts(registry: Registry) -> None:
    found = [(v.name, v.number, v.aliases) for v in registry.versions()]
    assert found == [
        ("acme.sales", 1, ()),
        ("acme.support", 3, ()),
        ("acme.support", 2, ("staging",)),
        ("acme.support", 1, ("production",)),
        ("beta.support", 1, ()),
    ]


@pytest.mark.parametrize(
    ("reference", "name", "number"),
    [
        ("acme/support", "acme.support", 2),
        ("acme.support", "acme.support", 2),
        ("sales", "acme.sales", 1),
        ("acme/support@production", "acme.support", 1),
        ("acme/support@3", "acme.support", 3),
        ("acme/support@bbbb00000003", "acme.support", 3),
        ("acme/support@bb", "acme.support", 3),
    ],
)
def test_what_people_call_a_version(
    registry: Registry, reference: str, name: str, number: int
) -> None:
    version = registry.find(reference)
    assert (version.name, version.number) == (name, number)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("support", "support: is ambiguous; choose one of acme.support, beta.support"),
        ("nobody", "no such model in MLflow at sqlite"),
        (
            "acme/support@canary",
            "acme/support@canary: acme.support has no version 'canary'; choose one of "
            "bbbb00000003, staging/aaaa00000002, production/aaaa00000001",
        ),
        ("acme/support@aaaa", "has no version 'aaaa'"),
    ],
)
def test_an_unknown_name_is_told_what_exists(
    registry: Registry, reference: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        registry.find(reference)
    assert message in str(caught.value)


def test_names_and_scores_of_a_version(registry: Registry) -> None:
    version = registry.find("acme/support@production")
    assert (version.tenant, version.model, version.served_name) == (
        "acme",
        "support",
        "acme/support",
    )
    assert version.scores == {"exact_match": 0.5, "exact_match.base": 0.0}


def test_a_database_that_is_none_is_a_dependency_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database")
    with pytest.raises(DependencyError, match="MLflow at sqlite:///"):
        Registry(f"sqlite:///{tmp_path / 'mlflow.db'}").versions()
