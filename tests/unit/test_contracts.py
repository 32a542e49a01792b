"""Every rule for files that people write has one broken file, and its message is asserted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from kuznia.contracts.base import Contract, canonical_json, digest_of, load_yaml, parse
from kuznia.contracts.catalogue import BaseModelEntry, GpuClass, Toleration, load_catalogue
from kuznia.contracts.llamafactory import OWNED, known_keys, llamafactory_problems
from kuznia.contracts.release import Autoscaling, Release
from kuznia.contracts.runspec import (
    CardSpec,
    Columns,
    Data,
    Evaluation,
    GateRule,
    RunSpec,
    data_suffix,
    is_uri,
    parse_run_spec,
)
from kuznia.contracts.soft import Soft
from kuznia.contracts.tenant import (
    Access,
    Issuer,
    MLflow,
    Part,
    Platform,
    Retention,
    Storage,
    Tenant,
    TrainingShare,
)
from kuznia.errors import InputError
from scripts import generate_schemas
from workflows.environments import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
INVALID = sorted((FIXTURES / "invalid").glob("*.yaml"))
VALID = sorted((FIXTURES / "valid").glob("*.yaml"))
EXPECTED = "# expected: "
DEPLOYED: dict[str, type[Contract]] = {
    "platform": Platform,
    "release": Release,
    "soft": Soft,
    "tenant": Tenant,
}

PATH_LIKE = re.compile(
    r"(^|_)(dir|logdir|path|folder|file|url|token|secret|api_key|repo|hub\w*|space_id)$"
)
NOT_PATHS = {"include_num_input_tokens_seen"}


def load(path: Path) -> object:
    """The contract in a fixture; its file name says which one it is."""
    if path.name.startswith("catalogue"):
        return load_catalogue(path)
    if model := DEPLOYED.get(path.name.partition("-")[0]):
        return parse(model, load_yaml(path.read_text("utf-8"), path.name), path.name)
    return parse_run_spec(path.read_text("utf-8"), "train.yaml")


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_a_broken_file_is_refused_in_these_words(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    expected = [line.removeprefix(EXPECTED) for line in lines if line.startswith(EXPECTED)]
    with pytest.raises(InputError) as caught:
        load(path)
    assert [problem.replace(str(path), path.name) for problem in caught.value.problems] == expected


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_right_file_passes(path: Path) -> None:
    assert load(path)


def expected_lines() -> list[str]:
    lines = "\n".join(path.read_text("utf-8") for path in INVALID).splitlines()
    return [line.removeprefix(EXPECTED) for line in lines if line.startswith(EXPECTED)]


def test_every_cross_check_has_a_broken_file() -> None:
    names = ("runspec.py", "catalogue.py", "release.py", "tenant.py")
    code = "".join((ROOT / "kuznia" / "contracts" / name).read_text("utf-8") for name in names)
    starts = re.findall(r'raise ValueError\(\s*f?"([a-z][^"{]+)', code)
    assert len(starts) == 14
    for start in starts:
        assert any(start.strip() in line for line in expected_lines()), start


@pytest.mark.parametrize(
    "model",
    [
        *(RunSpec, Data, GateRule, Evaluation, CardSpec, BaseModelEntry, GpuClass, Toleration),
        *(Release, Autoscaling, Tenant, TrainingShare, Storage, MLflow, Retention, Platform, Part),
        *(Access, Issuer),
    ],
    ids=lambda model: model.__name__,
)
def test_every_bound_and_closed_set_has_a_broken_file(model: type[Contract]) -> None:
    for name, field in model.model_fields.items():
        if field.metadata or "Literal" in str(field.annotation):
            places = (f" {name}: ", f".{name}: ", f".{name}.", f" {name}.")
            assert any(place in line for line in expected_lines() for place in places), name


def test_the_schema_agrees_with_the_fixtures() -> None:
    made = generate_schemas.generated()
    schemas = {path.stem: json.loads(text) for path, text in made.items()}
    for path in VALID:
        (name,) = (name for name in schemas if path.name.startswith(name))
        jsonschema.validate(yaml.safe_load(path.read_text("utf-8")), schemas[name])
    misspelt = FIXTURES / "invalid" / "llamafactory-misspelt-key.yaml"
    with pytest.raises(jsonschema.ValidationError, match="lora_rnak"):
        jsonschema.validate(yaml.safe_load(misspelt.read_text("utf-8")), schemas["run-spec"])


def test_the_committed_schemas_are_current() -> None:
    for path, text in generate_schemas.generated().items():
        assert (ROOT / path).read_text("utf-8") == text, f"{path}: run `make generate`"


def test_owned_keys_are_keys_of_the_trainer() -> None:
    assert set(OWNED) <= set(known_keys())


def test_no_key_that_names_a_place_is_left_to_people() -> None:
    left = {key for key in known_keys() if PATH_LIKE.search(key)} - set(OWNED) - NOT_PATHS
    assert left == set()


@pytest.mark.parametrize("key", sorted(OWNED))
def test_an_owned_key_is_refused_with_a_way_out(key: str) -> None:
    (problem,) = llamafactory_problems({key: None})
    assert problem == f"{key} is set by the platform; {OWNED[key]}"


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 1},
        {"lora_alpha": None},
        {"packing": None},
        {"lr_scheduler_type": "cosine"},
        {"optim": "adamw_torch"},
    ],
)
def test_values_that_the_trainer_takes_pass(settings: dict[str, object]) -> None:
    assert llamafactory_problems(settings) == []


def test_several_faults_come_together_in_the_order_of_the_file() -> None:
    text = (FIXTURES / "invalid" / "run-spec-several-faults.yaml").read_text("utf-8")
    assert text.count(EXPECTED) == 6


def test_canonical_json_and_digest_do_not_depend_on_order() -> None:
    assert canonical_json({"b": 1, "a": "ż"}) == '{"a":"ż","b":1}'.encode()
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    assert digest_of(Columns(prompt="q", response="a")) == digest_of(
        {"prompt": "q", "response": "a", "system": None}
    )


@pytest.mark.parametrize(
    ("path", "suffix", "uri"),
    [
        ("data/Train.JSONL", ".jsonl", False),
        ("s3://bucket/rows.csv", ".csv", True),
        ("rows", "", False),
    ],
)
def test_data_paths(path: str, suffix: str, uri: bool) -> None:
    assert data_suffix(path) == suffix
    assert is_uri(path) is uri
