"""The local engine, with steps that are a few lines of Python each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kuznia.errors import DependencyError
from tests.fixtures import chains
from tests.fixtures.chains import retry, step
from workflows import state
from workflows.environments import ROOT, variables_of
from workflows.local import INTERRUPTED, Result, Watcher, execute
from workflows.subset import Retry, load


class Ear(Watcher):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.heard: list[dict[str, Any]] = []
        self.phases: list[tuple[str, str]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, name: str, facts: dict[str, Any]) -> None:
        self.phases.append((name, facts["phase"]))

    def progress(self, name: str, facts: dict[str, Any]) -> None:
        self.heard.append(facts)


@pytest.fixture(autouse=True)
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that steps write to by `note`."""
    monkeypatch.setenv("JOURNAL", str(tmp_path / "journal"))
    return tmp_path / "journal"


def run(
    folder: Path, steps: dict[str, Any], parallelism: int = 2, watcher: Watcher | None = None
) -> Result:
    chain = load(chains.write(folder, steps, parallelism))
    return execute(chain, "a-run", {"config": "text"}, {"tenant": "acme"}, watcher)


def steps_of(run: str = "a-run") -> dict[str, Any]:
    found: dict[str, Any] = state.read(run)["steps"]
    return found


def wait_until(true: Callable[[], bool]) -> None:
    """Poll; the test's own timeout is the limit."""
    while not true():
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def start_engine(folder: Path, steps: dict[str, Any]) -> subprocess.Popen[bytes]:
    """An engine in a process of its own."""
    command = [sys.executable, "-m", "tests.fixtures.chains", chains.write(folder, steps), "a-run"]
    return subprocess.Popen(command, cwd=ROOT)


def test_programs_of_an_environment_keep_their_compiled_modules() -> None:
    told = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | variables_of("platform")
    asked = [sys.executable, "-c", "import sys; print(sys.dont_write_bytecode)"]
    assert subprocess.check_output(asked, env=told, text=True) == "False\n"


def test_steps_run_in_order_and_pass_their_outputs_on(tmp_path: Path, journal: Path) -> None:
    name = "note({!r}); done([{!r}, sorted(given.items())])"
    result = run(
        tmp_path,
        {
            "late": step(name.format("late", "late"), ("left", "right")),
            "left": step(name.format("left", "left"), ("first",)),
            "right": step(name.format("right", "right"), ("first",)),
            "first": step(name.format("first", "first")),
        },
    )
    assert (result.phase, result.exit_code, result.failed) == ("Succeeded", 0, None)
    order = journal.read_text().split()
    assert (order[0], order[-1], len(order)) == ("first", "late", 4)
    late = dict(json.loads(result.outputs["late.outputs"])[1])
    assert late["run"] == "a-run" and late["config"] == "text"
    assert json.loads(late["left"]) == json.loads(result.outputs["left.outputs"])


def test_ready_steps_run_at_once(tmp_path: Path) -> None:
    # Each waits for the other, so one after the other would never end.
    meet = "Path({!r}).touch(); wait_for({!r}); done()"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    result = run(tmp_path, {"one": step(meet.format(one, two)), "two": step(meet.format(two, one))})
    assert result.phase == "Succeeded"


def test_parallelism_is_a_limit(tmp_path: Path, journal: Path) -> None:
    code = "note('start'); time.sleep(0.1); note('end'); done()"
    assert run(tmp_path, {name: step(code) for name in "abc"}, parallelism=1).exit_code == 0
    assert journal.read_text().split() == ["start", "end"] * 3


def test_values_are_handed_over_as_they_are(tmp_path: Path) -> None:
    chain = load(chains.write(tmp_path, {"a": step("done(given['config'])")}))
    config = "purpose: 'żółć {{workflow.name}} /kuznia/work/x'\n"
    result = execute(chain, "a-run", {"config": config})
    assert json.loads(result.outputs["a.outputs"]) == config


@pytest.mark.parametrize(("code", "attempts"), [(3, 2), (75, 2), (2, 1), (1, 1)])
def test_only_3_and_75_are_retried(tmp_path: Path, code: int, attempts: int) -> None:
    ear = Ear()
    body = f"sys.exit({code}) if attempt() == 1 else done()"
    result = run(tmp_path, {"a": step(body, retryStrategy=retry())}, watcher=ear)
    assert result.exit_code == (0 if attempts == 2 else code)
    assert steps_of()["a"]["attempts"] == attempts
    assert any("again in 0 s, retry 1 of 3" in text for text in ear.said) == (attempts == 2)


def test_retries_end_at_their_limit(tmp_path: Path) -> None:
    body = "print('error: store: is away; start it', file=sys.stderr); sys.exit(3)"
    result = run(tmp_path, {"a": step(body, retryStrategy=retry(limit=2))})
    assert (result.phase, result.exit_code) == ("Failed", 3)
    assert steps_of()["a"] | {"seconds": 0} == {
        "phase": "Failed",
        "attempts": 3,
        "seconds": 0,
        "exit_code": 3,
        "message": "store: is away; start it",
    }


def test_the_pause_grows_by_its_factor() -> None:
    pauses = [Retry(3, frozenset({3}), duration=10, factor=2).pause(n) for n in (1, 2, 3)]
    assert pauses == [10, 20, 40]


def test_a_failure_lets_others_finish_and_starts_none(tmp_path: Path) -> None:
    failed = str(tmp_path / "failed")
    result = run(
        tmp_path,
        {
            "bad": step(
                f"Path({failed!r}).touch(); print('error: data.jsonl:3: is not JSON; mend it',"
                " file=sys.stderr); print('error: second', file=sys.stderr); sys.exit(2)"
            ),
            "long": step(f"wait_for({failed!r}); time.sleep(0.2); done()"),
            "next": step("done()", ("long",)),
        },
    )
    assert (result.phase, result.exit_code, result.failed) == ("Failed", 2, "bad")
    phases = {name: facts["phase"] for name, facts in steps_of().items()}
    assert phases == {"bad": "Failed", "long": "Succeeded", "next": "Pending"}
    assert steps_of()["bad"]["message"] == "data.jsonl:3: is not JSON; mend it\nsecond"
    assert "error: second\n" in state.log_path("a-run", "bad").read_text()


def test_a_crash_is_told_by_its_last_line(tmp_path: Path) -> None:
    assert run(tmp_path, {"a": step("raise ValueError('odd')")}).exit_code == 1
    assert steps_of()["a"]["message"] == "ValueError: odd"


def test_a_killed_step_is_told_so(tmp_path: Path) -> None:
    result = run(tmp_path, {"a": step("os.kill(os.getpid(), signal.SIGKILL)")})
    assert result.exit_code == 128 + signal.SIGKILL
    assert "memory ran out" in steps_of()["a"]["message"]


def test_an_environment_that_cannot_be_installed_is_a_dependency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUZNIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    ear = Ear()
    result = run(tmp_path, {"a": step("done()", retryStrategy=retry(limit=1))}, watcher=ear)
    assert (result.phase, result.exit_code) == ("Failed", 3)
    assert steps_of()["a"]["message"].startswith("uv pip failed; check network and disk")
    begun = "installing the environment platform (first use, a minute or so)"
    assert ear.said.count(begun) == 2


def test_missing_outputs_are_a_failure(tmp_path: Path) -> None:
    assert run(tmp_path, {"a": step("sys.exit(0)")}).exit_code == 1
    assert "did not write" in steps_of()["a"]["message"]


def test_outputs_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    body = "first = attempt() == 1\nif first: outputs.write_text('[]')\nsys.exit(3 if first else 0)"
    result = run(tmp_path, {"a": step(body, retryStrategy=retry())})
    assert (result.exit_code, steps_of()["a"]["attempts"]) == (1, 2)


def test_the_work_folder_outlives_a_failure_and_not_a_success(tmp_path: Path) -> None:
    steps = {"a": step("done() if attempt() == 2 else sys.exit(2)")}
    assert run(tmp_path, steps).exit_code == 2
    assert run(tmp_path, steps).exit_code == 0
    assert not (state.run_folder("a-run") / "a" / "work").exists()


def test_a_step_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    late = step("time.sleep(600)", activeDeadlineSeconds=1, retryStrategy=retry())
    assert run(tmp_path, {"a": late}).exit_code == 1
    assert steps_of()["a"]["message"] == "a: took longer than 1 s and was stopped"


def test_both_pipes_are_drained(tmp_path: Path) -> None:
    body = (
        "sys.stderr.write('e' * 3_000_000); sys.stdout.write('o' * 3_000_000)\n"
        'print(\'\\n50%\\rprogress: {"step": "a", "done": 1, "total": 2}\')\ndone()'
    )
    ear = Ear()
    assert run(tmp_path, {"a": step(body)}, watcher=ear).exit_code == 0
    assert ear.heard == [{"step": "a", "done": 1, "total": 2}]
    assert state.log_path("a-run", "a").stat().st_size > 6_000_000
    assert ear.phases == [("a", "Running"), ("a", "Succeeded")]


def test_a_step_sees_the_settings_of_its_image_and_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUZNIA_STORE", "here")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///flow.db")
    result = run(tmp_path, {"a": step("done([dict(os.environ), sys.prefix])")})
    variables, prefix = json.loads(result.outputs["a.outputs"])
    assert variables["KUZNIA_STORE"] == str(tmp_path / "here")
    assert variables["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/flow.db"
    assert variables["KUZNIA_HOME"] == str(tmp_path / "home")
    assert prefix == variables["VIRTUAL_ENV"] and "platform-" in prefix


def test_what_a_step_leaves_running_ends_with_it(tmp_path: Path) -> None:
    body = "done(subprocess.Popen(['sleep', '600']).pid)"
    result = run(tmp_path, {"a": step(body)})
    assert not alive(json.loads(result.outputs["a.outputs"]))


POLITE = """
if (work / "saved").exists(): done("went on")
signal.signal(signal.SIGTERM, lambda *_: ((work / "saved").touch(), sys.exit(75)))
note("ready")
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_steps_save_and_the_next_run_goes_on(
    tmp_path: Path, journal: Path, number: signal.Signals
) -> None:
    steps = {"a": step(POLITE, retryStrategy=retry()), "b": step("done()", ("a",))}
    engine = start_engine(tmp_path, steps)
    wait_until(journal.exists)
    assert state.read("a-run")["phase"] == "Running"
    engine.send_signal(number)
    assert engine.wait() == INTERRUPTED
    facts = state.read("a-run")
    assert (facts["phase"], facts["exit_code"]) == ("Interrupted", INTERRUPTED)
    stopped = facts["steps"]["a"]
    assert (stopped["phase"], stopped["exit_code"]) == ("Pending", 75)
    result = run(tmp_path, steps)
    assert (result.phase, result.outputs["a.outputs"]) == ("Succeeded", '"went on"')


def test_a_second_signal_kills(tmp_path: Path, journal: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, lambda *_: note('deaf')); note(str(os.getpid()))\n"
    engine = start_engine(tmp_path, {"a": step(deaf + "while True: time.sleep(60)")})
    wait_until(journal.exists)
    engine.send_signal(signal.SIGINT)
    wait_until(lambda: "deaf" in journal.read_text())
    engine.send_signal(signal.SIGINT)
    assert engine.wait() == INTERRUPTED
    assert not alive(int(journal.read_text().split()[0]))


def test_a_killed_engine_takes_all_with_it_and_the_next_run_goes_on(
    tmp_path: Path, journal: Path
) -> None:
    body = (
        "if (work / 'saved').exists(): done('went on')\n(work / 'saved').touch()\n"
        "child = subprocess.Popen(['sleep', '600'])\nnote(f'{os.getpid()} {child.pid}')\n"
        "time.sleep(600)"
    )
    steps = {"a": step(body), "b": step("done()", ("a",))}
    engine = start_engine(tmp_path, steps)
    wait_until(journal.exists)
    pids = [int(pid) for pid in journal.read_text().split()]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    engine.kill()
    assert engine.wait() == -signal.SIGKILL
    wait_until(lambda: not any(alive(pid) for pid in pids))
    assert state.read("a-run")["phase"] == "Interrupted"
    assert run(tmp_path, steps).outputs == {"a.outputs": '"went on"', "b.outputs": '"done"'}


def test_a_run_has_one_engine(tmp_path: Path, journal: Path) -> None:
    engine = start_engine(tmp_path, {"a": step(POLITE)})
    wait_until(journal.exists)
    with pytest.raises(DependencyError) as refusal:
        run(tmp_path, {"a": step("done()")})
    assert str(refusal.value) == (
        f"run a-run: is already running (pid {engine.pid}); "
        "follow it with `kuznia logs a-run -f`, or stop it and run again"
    )
    os.kill(engine.pid, signal.SIGTERM)
    engine.wait()
