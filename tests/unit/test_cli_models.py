"""kuznia show and card on a registered version; the demo's own-data route."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cli.main import main
from cli.own_data import spec_for
from kuznia import settings
from kuznia.contracts.base import canonical_json
from kuznia.contracts.runspec import parse_run_spec
from kuznia.errors import InputError
from kuznia.gateway.served import target_of
from kuznia.registry import Registry, mlflow_client
from kuznia.store import open_store
from steps import model_card, register
from steps.context import Context
from tests.fixtures.evidence import GOLDEN, RUN, card_inputs, chain, register_inputs
from workflows.environments import ROOT

TEMPLATE = ROOT / "examples" / "demo" / "train.yaml"


def kuznia(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def registered(mlflow_database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Context:
    """acme.support in MLflow and the store, with its card and the results of its steps."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    # A store's own path may look like the layout in it.
    monkeypatch.setenv("KUZNIA_STORE", str(tmp_path / "models" / "store"))
    client = mlflow_client(mlflow_database)
    run_id = client.create_run(client.create_experiment("acme.support")).info.run_id
    context = Context(open_store(settings.store_uri()), mlflow_database, tmp_path, tmp_path)
    results = chain(run_id=run_id)
    results["register"] = register.run(register_inputs(run_id=run_id), context).model_dump()
    results["model_card"] = model_card.run(card_inputs(), context).model_dump()
    for step, outputs in results.items():
        key = f"runs/acme/{RUN}/{step.replace('_', '-')}/result.json"
        context.store.write(key, canonical_json({"inputs_digest": "", "outputs": outputs}))
    return context


def test_show_lists_models_with_aliases_and_scores(registered: Context) -> None:
    result = kuznia("show")
    assert result.exit_code == 0, result.output
    header, row = result.stdout.splitlines()
    assert header.split() == ["model", "version", "number", "aliases", "verdict", "scores"]
    assert row.split(maxsplit=5) == [
        "acme.support",
        "abcdef012345",
        "1",
        "staging",
        "promote",
        "exact_match 0.950, token_f1 0.970",
    ]


def test_show_without_any_model_says_how_to_make_one(
    mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    assert "make one with `kuznia run train.yaml`" in kuznia("show").stdout


def test_show_a_version_tells_lineage_and_places(registered: Context) -> None:
    facts = json.loads(kuznia("show", "support", "--json").stdout)
    assert facts["where"] == registered.store.uri_of("models/acme/support/abcdef012345")
    assert facts["digest"] == "c" * 64
    assert facts["base_digest"] == "b" * 64
    assert facts["data_fingerprint"] == "f" * 64
    assert facts["run"] == RUN
    assert facts["verified"] is True
    assert registered.store.exists(facts["card"].removeprefix(registered.store.uri + "/"))
    text = kuznia("show", "support@staging").stdout
    assert f"base digest       {'b' * 64}" in text


def test_show_a_run_tells_what_each_step_found(registered: Context) -> None:
    facts = json.loads(kuznia("show", RUN, "--json").stdout)
    assert facts["verdict"] == "promote"
    assert facts["scores"]["exact_match"]["candidate"] == 0.95
    assert facts["version"] == "abcdef012345"
    assert facts["registered"]["aliases"] == ["staging"]
    assert "purpose.users" in facts["missing"]
    assert "exact_match: base 0, candidate 0.95" in kuznia("show", RUN).stdout


def test_show_something_unknown_is_exit_2(registered: Context) -> None:
    result = kuznia("show", "nobody")
    assert result.exit_code == 2
    assert "error: nobody: no such model" in result.stderr
    assert "choose one of acme.support" in result.stderr


@pytest.mark.parametrize("which", [(), ("--version", "staging"), ("--version", "abcdef")])
def test_card_prints_the_readme(registered: Context, which: tuple[str, ...]) -> None:
    result = kuznia("card", "acme/support", *which)
    assert result.stdout == (GOLDEN / "README.md").read_text("utf-8")


def test_what_is_served_has_the_risk_of_its_card(registered: Context) -> None:
    version = Registry(registered.tracking_uri).find("support")
    assert target_of(version, "http://127.0.0.1:8000").risk == "minimal"


def test_card_prints_the_canonical_file(registered: Context) -> None:
    result = kuznia("card", "support", "--format", "yaml")
    assert result.stdout == (GOLDEN / "card.yaml").read_text("utf-8")


def test_a_card_that_was_never_written_is_exit_2(registered: Context) -> None:
    path = registered.store.local_path("cards/acme/support/abcdef012345/README.md")
    assert path is not None
    path.unlink()
    result = kuznia("card", "support")
    assert result.exit_code == 2
    assert "has not been written; run the chain again" in result.stderr


def test_mlflow_down_is_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = kuznia("show")
    assert result.exit_code == 3
    assert "MLflow at http://127.0.0.1:9 does not answer" in result.stderr


ROWS = [("What is A?", "one"), ("What is B?", "two, or 2")]


@pytest.mark.parametrize(
    ("name", "text", "data"),
    [
        (
            "Our FAQ.csv",
            "id,Question,Answer\n1,a,b\n",
            {"prompt": "Question", "response": "Answer"},
        ),
        ("faq.csv", "prompt;response\na;b\n", {"prompt": "prompt", "response": "response"}),
        ("faq.tsv", "input\toutput\na\tb\n", {"prompt": "input", "response": "output"}),
        ("faq.csv", "pytanie,odpowiedź\na,b\n", {"prompt": "pytanie", "response": "odpowiedź"}),
        ("faq.jsonl", '{"messages": []}\n', "openai"),
        ("faq.json", '[{"conversations": []}]', "sharegpt"),
        ("faq.jsonl", '{"instruction": "a", "output": "b"}\n', "alpaca"),
        ("faq.jsonl", '{"Question": "a", "Answer": "b"}\n', "renamed"),
        ("faq.json", '[{"question": "a", "answer": "b"}]', "renamed"),
    ],
)
def test_own_data_makes_a_run_spec(
    tmp_path: Path, name: str, text: str, data: str | dict[str, str]
) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    path = spec_for(tmp_path / name, TEMPLATE, tmp_path / "made", 2)
    spec = parse_run_spec(path.read_text("utf-8"))
    assert spec.llamafactory["num_train_epochs"] == 2
    assert spec.model in ("our-faq", "faq")
    if isinstance(data, dict):
        assert spec.data.format == "csv"
        assert spec.data.columns is not None
        assert spec.data.columns.model_dump(exclude_none=True) == data
    elif data == "renamed":
        (row,) = [json.loads(line) for line in Path(spec.data.train).read_text().splitlines()]
        assert row == {"instruction": "a", "input": "", "output": "b"}
    else:
        assert spec.data.format == data
        assert spec.data.train == str(tmp_path / name)


def test_a_broken_line_of_own_data_is_left_for_the_data_check(tmp_path: Path) -> None:
    (tmp_path / "faq.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question":\n')
    path = spec_for(tmp_path / "faq.jsonl", TEMPLATE, tmp_path / "made", None)
    train = Path(yaml.safe_load(path.read_text("utf-8"))["data"]["train"])
    assert train.read_text().splitlines()[1] == '{"question":'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "columns are a, b, which do not say what is asked"),
        ("x.jsonl", "not json\n", "x.jsonl:1: is not a JSON object with columns"),
        ("x.jsonl", "", "x.jsonl: is empty; put rows into it"),
        ("x.xlsx", "PK", "x.xlsx: is not .csv, .jsonl or .json; convert it"),
        ("x.csv", None, "x.csv: no such file; correct the path"),
    ],
)
def test_own_data_that_cannot_be_told_is_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        spec_for(tmp_path / name, TEMPLATE, tmp_path / "made", None)
    assert message in str(caught.value)
