"""The startup probe, asking a server that answers as vLLM does; test_serving.py has a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.listening import Handler, listening
from workflows.environments import ROOT

VERSION, BASE = [-0.1, -0.2], [-4.0, -5.0]
ROWS = [
    {"prompt": [1, 2, 3], "answer": [7, 8], "logprobs": VERSION, "base_logprobs": BASE},
    {"prompt": list(range(100)), "answer": [7, 8], "logprobs": VERSION, "base_logprobs": BASE},
]
NAME = "acme/support"


@dataclass
class Served:
    """A server whose answers a test decides."""

    logprobs: list[float] = field(default_factory=lambda: list(VERSION))
    health: int = 200
    name: str = NAME
    longest: int = 4096
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, question: dict[str, Any]) -> tuple[int, Any]:
        if path == "/health":
            return self.health, {}
        if path == "/v1/models":
            # An adapter's entry says no length.
            base = {"id": f"{self.name}:base", "max_model_len": self.longest}
            return 200, {"data": [base, {"id": self.name, "max_model_len": None}]}
        self.asked.append(question)
        if self.status != 200:
            return self.status, {"error": {"message": "out of memory"}}
        if path == "/v1/chat/completions":
            return 200, {"choices": [{"message": {"content": "Hi"}}]}
        prompt = question["prompt"]
        before: list[Any] = [None, *({str(token): {"logprob": -1.0}} for token in prompt[1:-2])]
        answer = [
            {str(token): {"logprob": value, "rank": 1}}
            for token, value in zip(prompt[-2:], self.logprobs, strict=True)
        ]
        return 200, {"choices": [{"text": "", "prompt_logprobs": [*before, *answer]}]}


@pytest.fixture
def served() -> Iterator[Served]:
    facts = Served()

    class Vllm(Handler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, question: dict[str, Any]) -> None:
            status, value = facts.answer(self.path, question)
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with listening(Vllm) as facts.url:
        yield facts


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"rows": ROWS, "limits": {"mean_difference": 0.1}}))
    return path


def prove(url: str, answers: Path, **variables: str) -> tuple[int, str]:
    """Exit code and output of the probe, which finds no installed package."""
    log = Path(os.environ["KUZNIA_HOME"]).with_name("termination-log")
    log.write_text("")
    done = subprocess.run(
        [
            *(sys.executable, "-S", "-m", "steps.prove"),
            *("--answers", str(answers), "--url", url, "--model", NAME),
        ],
        cwd=ROOT,
        env=os.environ
        | {"TMPDIR": str(log.parent), "KUZNIA_TERMINATION_LOG": str(log)}
        | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = done.stdout.rstrip("\n")
    assert "\n" not in said
    # Only what will not pass by itself is left for Kubernetes to show.
    assert log.read_text() == (said if said.startswith("error: ") else "")
    return done.returncode, said.removeprefix("error: ")


def test_the_recorded_version_is_proved_once(served: Served, answers: Path) -> None:
    served.logprobs = [-0.11, -0.22]
    assert prove(served.url, answers) == (
        0,
        "acme/support: answers as recorded (on 4 tokens 0.015 from the version and 4.33 from the "
        "base, which differ by 4.35; allowed 0.1)",
    )
    assert [question["prompt"] for question in served.asked] == [
        row["prompt"] + row["answer"]  # type: ignore[operator]
        for row in ROWS
    ]
    assert served.asked[0]["model"] == NAME
    served.health = 503
    assert prove(served.url, answers) == (0, "")
    (mark,) = answers.parent.glob("kuznia-proved")
    mark.write_text(mark.read_text()[:-1] + "x")
    assert prove(served.url, answers)[0] == 1, "another start of the server was not proved"


def test_what_is_not_up_yet(served: Served, answers: Path) -> None:
    away = (1, "acme/support: not up yet ([Errno 111] Connection refused)")
    assert prove("http://127.0.0.1:9", answers) == away
    served.health = 503
    assert prove(served.url, answers) == (1, "acme/support: not up yet (/health answers 503)")
    served.health, served.status = 200, 500
    code, said = prove(served.url, answers)
    assert code == 1
    assert said.startswith(f"acme/support: not up yet ({served.url}/v1/completions answers 500: ")


def test_another_model_is_told_and_ended(served: Served, answers: Path) -> None:
    served.logprobs = [-4.05, -5.0]
    with subprocess.Popen(["sleep", "60"]) as server:
        code, said = prove(served.url, answers, KUZNIA_PROVE_ENDS=str(server.pid))
        assert server.wait(10) == -signal.SIGTERM
    assert (code, said) == (
        1,
        "acme/support: answers like its base (on 4 tokens 4.38 from the version and 0.025 from the "
        "base, which differ by 4.35; allowed 0.1); serve the version or its adapter, not the base, "
        "or train longer where the two hardly differ",
    )
    served.logprobs = [-9.0, -9.0]
    code, said = prove(served.url, answers)
    assert (code, said) == (
        1,
        "acme/support: answers otherwise than recorded (on 4 tokens 8.85 from the version and 4.5 "
        "from the base, which differ by 4.35; allowed 0.1); serve the weights of this version in a "
        "number format that keeps them, or return to the version before",
    )
    assert not list(answers.parent.glob("kuznia-proved"))


def test_a_base_within_the_limit_is_still_a_base(served: Served, answers: Path) -> None:
    near = [{**row, "base_logprobs": [-0.15, -0.25]} for row in ROWS]
    answers.write_text(json.dumps({"rows": near, "limits": {"mean_difference": 0.1}}))
    served.logprobs = [-0.15, -0.25]
    code, said = prove(served.url, answers)
    assert code == 1
    assert "answers like its base (on 4 tokens 0.05 from the version and 0 from the base" in said


def test_a_short_context_leaves_out_what_does_not_fit(served: Served, answers: Path) -> None:
    served.longest = 64
    code, said = prove(served.url, answers)
    assert code == 0
    assert "on 2 tokens" in said
    served.longest = 5
    (answers.parent / "kuznia-proved").unlink()
    assert prove(served.url, answers) == (
        1,
        "acme/support: no recorded prompt fits the context of 5 tokens, so nothing can be proved; "
        "set context_length to 6 or more",
    )


def test_what_the_server_refuses_is_told(served: Served, answers: Path) -> None:
    served.name = "acme/other"
    assert prove(served.url, answers) == (
        1,
        "acme/support: is not served, but acme/other:base, acme/other; correct the served model's "
        "name",
    )
    served.name, served.status = NAME, 400
    code, said = prove(served.url, answers)
    assert code == 1
    assert said.endswith(
        '/v1/completions answers 400: {"error": {"message": "out of memory"}}; correct the '
        "release's engine or arguments"
    )


@pytest.mark.parametrize("place", ["answers.json", "/dev/null"])
def test_without_recorded_answers_it_is_enough_to_answer(
    served: Served, tmp_path: Path, place: str
) -> None:
    served.health = 404
    assert prove(served.url, tmp_path / place) == (
        0,
        "acme/support: answers; nothing was recorded to compare with",
    )
    assert served.asked[0]["messages"] == [{"role": "user", "content": "Hello"}]
