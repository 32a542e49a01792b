"""The example for Hera, against a stand-in for an argo-server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.submit_with_hera import main
from tests.fixtures.listening import Handler, listening
from workflows.submit import prepare

# Hera's own.
pytestmark = pytest.mark.filterwarnings("ignore:The `json` method is deprecated")
SPEC = {
    "tenant": "acme",
    "model": "support",
    "base": "smollm2-135m-instruct",
    "data": {"train": "s3://bucket/train.jsonl", "format": "alpaca"},
    "card": {"purpose": "Tries the example.", "owner": "tests", "risk": "minimal"},
}


class ArgoServer:
    """Holds one Workflow, which has succeeded as soon as somebody looks at it."""

    def __init__(self) -> None:
        self.workflow: dict[str, Any] | None = None
        self.asked: list[str] = []


@pytest.fixture
def argo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArgoServer]:
    server = ArgoServer()

    class Workflows(Handler):
        def do_POST(self) -> None:
            server.asked.append("create")
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.workflow:
                self.answer(409, {"message": "workflows.argoproj.io already exists"})
            else:
                server.workflow = body["workflow"] | {"status": {"phase": "Succeeded"}}
                server.workflow["metadata"]["uid"] = "new"
                self.answer(200, server.workflow)

        def do_GET(self) -> None:
            server.asked.append("get")
            self.answer(200, server.workflow or {})

        def do_DELETE(self) -> None:
            server.asked.append(self.path.partition("?")[2])
            server.workflow = None
            self.answer(200, {})

        def answer(self, status: int, body: dict[str, Any]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

    with listening(Workflows) as url:
        monkeypatch.setenv("ARGO_SERVER", url)
        yield server


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(SPEC), "utf-8")
    return path


def test_a_run_is_named_as_kuznia_names_it(
    argo: ArgoServer, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(str(spec), "acme-training") == 0
    run = prepare(spec).run
    assert capsys.readouterr().out.splitlines() == [f"{run}: submitted", f"{run}: Succeeded"]
    assert argo.workflow and argo.workflow["metadata"]["labels"]["kuznia.model"] == "support"


def test_a_failed_run_starts_again_under_its_name(
    argo: ArgoServer, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {"name": prepare(spec).run, "uid": "old", "resourceVersion": "7"}
    argo.workflow = {"metadata": metadata, "spec": {}, "status": {"phase": "Failed"}}
    assert main(str(spec), "acme-training") == 0
    assert "ended before (Failed); what is done is kept" in capsys.readouterr().out
    options = "deleteOptions.{}".format
    assert argo.asked[:4] == [
        "create",
        "get",
        f"{options('preconditions.uid')}=old&{options('preconditions.resourceVersion')}=7&"
        f"{options('propagationPolicy')}=Foreground",
        "create",
    ]
    assert argo.workflow["metadata"]["uid"] == "new"


def test_a_run_under_way_is_followed(
    argo: ArgoServer, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argo.workflow = {"metadata": {"name": "x"}, "spec": {}, "status": {"phase": "Succeeded"}}
    assert main(str(spec), "acme-training") == 0
    assert "is there already; following it" in capsys.readouterr().out
    assert argo.asked == ["create", "get", "get"]


def test_a_connection_that_breaks_is_one_line(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARGO_SERVER", "http://127.0.0.1:1")
    assert main(str(spec), "acme-training") == 3
    assert capsys.readouterr().err == (
        "error: http://127.0.0.1:1: does not answer (ConnectionError); a run that was submitted "
        "goes on, and the same command follows it\n"
    )


def test_a_file_of_this_machine_is_refused(
    argo: ArgoServer, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = spec.parent / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    spec.write_text(yaml.safe_dump(SPEC | {"data": {"train": "rows.jsonl", "format": "alpaca"}}))
    assert main(str(spec), "acme-training") == 2
    assert capsys.readouterr().err.startswith(
        f"error: {spec}: data.train: {rows} is a file on this machine, which a cluster cannot read"
    )
    assert argo.asked == []
