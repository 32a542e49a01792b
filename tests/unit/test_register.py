"""The step register, with MLflow's real registry: a database, and a server that stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from kuznia.contracts.steps import RegisterInputs
from kuznia.errors import DependencyError, InputError
from kuznia.registry import Registry, mlflow_client
from kuznia.serving import free_port
from kuznia.store import open_store
from steps import register
from steps.__main__ import main
from steps.context import Context
from tests.fixtures.evidence import chain, register_inputs
from workflows.environments import python_of, variables_of

CLOSED = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


def context_for(uri: str, folder: Path, store: str | None = None) -> Context:
    return Context(open_store(store or str(folder / "store")), uri, folder, folder)


def new_run(uri: str) -> str:
    client = mlflow_client(uri)
    found = client.get_experiment_by_name("acme.support")
    experiment = found.experiment_id if found else client.create_experiment("acme.support")
    run_id: str = client.create_run(experiment).info.run_id
    return run_id


@pytest.fixture
def context(mlflow_database: str, tmp_path: Path) -> Context:
    return context_for(mlflow_database, tmp_path)


def test_a_passed_version_is_registered_staged_and_traceable(context: Context) -> None:
    run_id = new_run(context.tracking_uri)
    outputs = register.run(register_inputs(run_id=run_id), context)
    assert outputs.model_dump() == {
        "name": "acme.support",
        "number": 1,
        "version": "abcdef012345",
        "aliases": ("staging",),
    }
    registry = Registry(context.tracking_uri)
    (version,) = registry.versions()
    assert version.uri == context.store.uri_of("models/acme/support/abcdef012345")
    assert version.run_id == run_id
    assert version.aliases == ("staging",)
    assert version.tags == {
        "version": "abcdef012345",
        "digest.sha256": "c" * 64,
        "mode": "merged",
        "base_model": "smollm2-135m-instruct",
        "base_digest": "b" * 64,
        "base_key": f"bases/smollm2/{'b' * 64}",
        "data_fingerprint": "f" * 64,
        "method": "lora",
        "kuznia": "0.1.0",
        "run": "support-0123456789",
        "answers_key": "runs/acme/support-0123456789/verify/answers.json",
        "answers_sha256": "5" * 64,
        "eval.verdict": "promote",
        "verify.passed": "true",
        "score.exact_match": "0.95",
        "score.exact_match.base": "0",
        "score.token_f1": "0.97",
        "score.token_f1.base": "0.125",
        "lifecycle": "staging",
    }
    assert registry.metrics(run_id)["eval_exact_match"] == 0.95


def test_an_adapter_says_its_rank(context: Context) -> None:
    made = chain(run_id=new_run(context.tracking_uri))
    made["export"]["mode"] = "adapter"
    register.run(RegisterInputs.model_validate(made), context)
    (version,) = Registry(context.tracking_uri).versions()
    assert version.tags["lora_rank"] == "8"


def test_nothing_is_registered_twice(context: Context) -> None:
    inputs = register_inputs(run_id=new_run(context.tracking_uri))
    first = register.run(inputs, context)
    assert register.run(inputs, context) == first
    assert len(Registry(context.tracking_uri).versions()) == 1


def test_a_version_without_its_alias_is_completed(context: Context) -> None:
    """As left by a kill between the two: the version is there, the alias is not."""
    inputs = register_inputs(run_id=new_run(context.tracking_uri))
    client = mlflow_client(context.tracking_uri)
    client.create_registered_model("acme.support")
    number = register._create(client, "acme.support", inputs, context)
    assert Registry(context.tracking_uri).versions()[0].aliases == ()
    assert register.run(inputs, context).number == number
    (version,) = Registry(context.tracking_uri).versions()
    assert version.aliases == ("staging",)
    assert version.tags["lifecycle"] == "staging"


@pytest.mark.parametrize(
    ("verdict", "passed", "why"),
    [
        ("hold", True, "the verdict is hold (exact_match: 0.950 on 60 rows is at least 0.8)"),
        ("not enough evidence", True, "the verdict is not enough evidence"),
        ("promote", False, "verify did not pass (top-1 agreement 0.5 is below 0.98)"),
    ],
)
def test_a_version_that_did_not_pass_is_a_candidate_and_says_why(
    context: Context, capfd: pytest.CaptureFixture[str], verdict: str, passed: bool, why: str
) -> None:
    run_id = new_run(context.tracking_uri)
    inputs = register_inputs(run_id=run_id, verdict=verdict, passed=passed)
    assert register.run(inputs, context).aliases == ()
    (version,) = Registry(context.tracking_uri).versions()
    assert version.tags["lifecycle"] == "candidate"
    assert f"register: not staged: {why}" in capfd.readouterr().out


def test_a_newer_version_takes_the_alias_and_a_failed_one_leaves_it(context: Context) -> None:
    def made(version: str, verdict: str = "promote") -> None:
        run_id = new_run(context.tracking_uri)
        register.run(register_inputs(run_id=run_id, version=version, verdict=verdict), context)

    made("111111111111")
    made("222222222222")
    made("333333333333", verdict="hold")
    found = {v.version: v for v in Registry(context.tracking_uri).versions()}
    assert {name: v.aliases for name, v in found.items()} == {
        "111111111111": (),
        "222222222222": ("staging",),
        "333333333333": (),
    }
    assert found["111111111111"].tags["lifecycle"] == "candidate"


def test_a_later_run_with_the_same_content_updates_what_it_found(context: Context) -> None:
    uri = context.tracking_uri
    register.run(register_inputs(run_id=new_run(uri), verdict="hold"), context)
    assert register.run(register_inputs(run_id=new_run(uri)), context).aliases == ("staging",)
    (version,) = Registry(uri).versions()
    assert version.tags["eval.verdict"] == "promote"


def test_mlflow_down_is_exit_3_and_one_line_with_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    inputs = tmp_path / "in.json"
    inputs.write_text(json.dumps(chain()))
    arguments = ["register", "--inputs", str(inputs), "--outputs", str(tmp_path / "out.json")]
    assert main([*arguments, "--workdir", str(tmp_path)]) == 3
    assert not (tmp_path / "out.json").exists()
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert errors == [
        f"error: MLflow at {CLOSED} does not answer (Connection refused); start it or correct "
        "MLFLOW_TRACKING_URI, then run the same command again"
    ]


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """A real MLflow server: (address, process)."""
    python = python_of("mlflow")
    folder = tmp_path_factory.mktemp("mlflow-server")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(python), "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
                *("--artifacts-destination", (folder / "artifacts").as_uri()),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                **variables_of("mlflow"),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                if httpx.get(f"{url}/health", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_a_server_registers_once_refuses_local_folders_and_may_stop(
    mlflow_server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    url, process = mlflow_server
    remote = context_for(url, tmp_path, "s3://models-of-tests/kuznia")
    inputs = register_inputs(run_id=new_run(url))
    first = register.run(inputs, remote)
    assert first.aliases == ("staging",)
    assert register.run(inputs, remote) == first
    (version,) = Registry(url).versions()
    assert version.uri == "s3://models-of-tests/kuznia/models/acme/support/abcdef012345"

    other = register_inputs(run_id=new_run(url), version="999999999999")
    with pytest.raises(InputError, match=r"refuses file:///.* as a model's source"):
        register.run(other, context_for(url, tmp_path))
    assert len(Registry(url).versions()) == 1
    with pytest.MonkeyPatch.context() as patch:
        # In a pod the folder is on a volume.
        patch.setenv("KUZNIA_POD_CPU", "1")
        register.run(other, context_for(url, tmp_path))
    uris = [version.uri for version in Registry(url).versions()]
    assert any(uri.startswith("file:///") and uri.endswith("/999999999999") for uri in uris)

    os.killpg(process.pid, signal.SIGKILL)
    with pytest.raises(DependencyError, match=f"MLflow at {url} does not answer"):
        register.run(other, remote)
