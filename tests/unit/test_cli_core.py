"""The command: help, errors, exit codes, and the commands about runs on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cli.main import main
from cli.watch import Lines, describe
from kuznia.contracts.runspec import parse_run_spec
from tests.fixtures import chains
from tests.fixtures.chains import step
from workflows import state
from workflows.environments import ROOT
from workflows.local import execute
from workflows.submit import prepare
from workflows.subset import load

ESCAPE = "\x1b["


def kuznia(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def kuznia_process(*words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it."""
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **more,
    )


def commands() -> list[str]:
    return main.list_commands(main.make_context("kuznia", ["run"]))  # type: ignore[attr-defined]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder that `kuznia init` has filled."""
    assert kuznia("init", tmp_path / "project").exit_code == 0
    return tmp_path / "project"


def edit(path: Path, **changes: Any) -> None:
    """Change keys of the YAML file at `path`; None removes one."""
    value = yaml.safe_load(path.read_text("utf-8"))
    value |= changes
    path.write_text(yaml.safe_dump({k: v for k, v in value.items() if v is not None}), "utf-8")


def finished_run(folder: Path, name: str = "support-0123456789", code: str = "done()") -> None:
    """A run of two steps, with real logs and state."""
    steps = {"plan": step(f"print('planned'); {code}"), "train": step("done()", ("plan",))}
    chain = load(chains.write(folder, steps))
    execute(chain, name, {"config": "text"}, {"tenant": "acme", "model": "support"})


# help


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom cli.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "slow = {'pydantic', 'yaml', 'rich', 'obstore', 'mlflow', 'httpx', 'psutil', 'hera'}\n"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "doctor" in done.stdout


def test_every_command_has_help_with_an_example() -> None:
    for name in commands():
        result = kuznia(name, "--help")
        assert result.exit_code == 0 and "example" in result.output, name
        assert f"kuznia {name}" in result.output.partition("example")[2], name


def test_the_list_of_commands_says_what_each_does() -> None:
    lines = kuznia("--help").output.partition("Commands:")[2]
    for name in commands():
        (line,) = (line for line in lines.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 2, name


def test_an_unknown_command_is_refused() -> None:
    result = kuznia("rnu")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: kuznia rnu: no such command; choose one of init, ")


# init and check


def test_init_writes_a_sound_spec(project: Path) -> None:
    spec = parse_run_spec((project / "train.yaml").read_text("utf-8"))
    assert (spec.tenant, spec.model) == ("acme", "support")
    schema = (project / "train.yaml").read_text("utf-8").partition("$schema=")[2].split()[0]
    assert "llamafactory" in json.loads((project / schema).read_text("utf-8"))["properties"]
    rows = {name: (project / f"data/{name}.jsonl").read_text() for name in ("train", "test")}
    questions = {
        name: {json.loads(row)["instruction"] for row in text.splitlines()}
        for name, text in rows.items()
    }
    assert len(questions["train"]) == 24 and not questions["train"] & questions["test"]


def test_init_overwrites_nothing(project: Path) -> None:
    (project / "train.yaml").write_text("mine")
    result = kuznia("init", project)
    assert result.exit_code == 2
    assert "train.yaml: exists already; move it away" in result.stderr
    assert (project / "train.yaml").read_text() == "mine"


def test_check_names_every_fault_of_every_file(project: Path) -> None:
    broken = project / "broken.yaml"
    broken.write_text((project / "train.yaml").read_text("utf-8"))
    edit(broken, seed=-1, card=None, data={"train": "none.jsonl", "format": "alpaca"})
    other = project / "other.yaml"
    other.write_text((project / "train.yaml").read_text("utf-8"))
    edit(other, base="smollm2-135m-instuct")
    (project / "data" / "test.jsonl").write_text("")
    result = kuznia("check", broken, other)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"error: {broken}: seed: -1 is below 0; choose a value within the bound",
        f"error: {broken}: card: is missing; add it",
        f"error: {broken}: data.train: {project}/none.jsonl: no such file; correct the path",
        f"error: {other}: base: 'smollm2-135m-instuct' is not in the catalogue; "
        "did you mean smollm2-135m-instruct?",
        f"error: {other}: data.test: {project}/data/test.jsonl: is empty; put rows into it",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; `kuznia init` writes one to start from"),
        (b"a: [", "line 1: not YAML ("),
        (b"\xff\xfe", "is not UTF-8 text; save it as UTF-8"),
        (b"- a", "is not a mapping of keys; start from `kuznia init`"),
        (b"data: 3", "tenant: is missing; add it"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "train.yaml"
    if content is not None:
        path.write_bytes(content)
    result = kuznia("run", path)
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.output


def test_errors_go_to_stderr_of_a_real_process(tmp_path: Path) -> None:
    done = kuznia_process("run", tmp_path / "none.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}/none.yaml: no such file")
    assert ESCAPE not in done.stderr


# prepare


def test_a_run_is_named_by_spec_and_data(project: Path) -> None:
    first, again = prepare(project / "train.yaml"), prepare(project / "train.yaml")
    assert first == again and first.run.startswith("support-")
    assert parse_run_spec(first.config) == first.spec
    # A comment changes nothing, a value or a row does.
    with (project / "train.yaml").open("a") as file:
        file.write("# a remark\n")
    assert prepare(project / "train.yaml").run == first.run
    with (project / "data/train.jsonl").open("a") as file:
        file.write('{"instruction": "one more", "output": "row"}\n')
    more = prepare(project / "train.yaml")
    edit(project / "train.yaml", seed=43)
    assert len({first.run, more.run, prepare(project / "train.yaml").run}) == 3


def test_another_version_of_kuznia_makes_another_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare(project / "train.yaml").run
    monkeypatch.setattr("workflows.submit.__version__", "99.0.0")
    assert prepare(project / "train.yaml").run != before


def test_data_goes_into_the_store(project: Path) -> None:
    (project / "data/train.jsonl").rename(project / "data/my rows (1).jsonl")
    edit(project / "train.yaml", data={"train": "data/my rows (1).jsonl", "format": "alpaca"})
    spec = prepare(project / "train.yaml").spec
    stored = Path(spec.data.train.removeprefix("file://"))
    assert stored.name == "my-rows-1-.jsonl" and spec.data.test is None
    assert stored.parts[-4:-2] == ("datasets", "acme")
    assert stored.read_bytes() == (project / "data/my rows (1).jsonl").read_bytes()


def test_the_name_does_not_depend_on_the_store(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = prepare(project / "train.yaml").run
    monkeypatch.setenv("KUZNIA_STORE", str(tmp_path / "elsewhere"))
    assert prepare(project / "train.yaml").run == here


# runs, status, logs


def test_without_runs_the_way_out_is_named() -> None:
    assert "start one with `kuznia run train.yaml`" in kuznia("runs").output
    result = kuznia("status")
    assert result.exit_code == 2
    assert "holds no run; start one with `kuznia run train.yaml`" in result.stderr


def test_runs_are_listed_the_newest_first(tmp_path: Path) -> None:
    finished_run(tmp_path, "support-0123456789")
    finished_run(tmp_path, "support-0199999999")
    lines = kuznia("runs").output.splitlines()
    assert [line.split()[0] for line in lines] == [
        "run",
        "support-0199999999",
        "support-0123456789",
    ]
    assert lines[1].split()[1:3] == ["acme", "Succeeded"]
    listed = json.loads(kuznia("runs", "--json").stdout)
    assert [run["phase"] for run in listed] == ["Succeeded"] * 2
    assert kuznia("status").output.startswith("support-0199999999: Succeeded")
    assert kuznia("status", "support-012").output.startswith("support-0123456789")
    result = kuznia("status", "support-01")
    assert result.exit_code == 2 and "begins 2 runs (" in result.stderr
    assert "`kuznia runs` lists what is" in kuznia("logs", "other").stderr


def test_status_shows_steps_and_what_failed(tmp_path: Path) -> None:
    finished_run(tmp_path, code="print('error: a.yaml: x; do y', file=sys.stderr); sys.exit(2)")
    result = kuznia("status")
    rows = [line.split()[:3] for line in result.stdout.splitlines()]
    assert rows[2:] == [["plan", "Failed", "1"], ["train", "Pending"]]
    log = state.log_path("support-0123456789", "plan")
    assert result.stderr == f"error: a.yaml: x; do y\nlog: {log}\n"
    assert json.loads(kuznia("status", "--json").stdout)["exit_code"] == 2


def test_logs_show_the_steps_asked_for(tmp_path: Path) -> None:
    finished_run(tmp_path)
    assert "plan: planned\n" in kuznia("logs").output
    assert "planned\n" in kuznia("logs", "--step", "plan").output
    assert "planned" not in kuznia("logs", "--step", "train").output
    result = kuznia("logs", "--step", "trian")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --step trian: is not a step of support-0123456789; choose one of plan, train\n",
    )


def test_logs_follow_a_run_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "go"
    path = chains.write(
        tmp_path, {"plan": step(f"print('early', flush=True); wait_for({str(go)!r}); done()")}
    )
    engine = subprocess.Popen(
        [sys.executable, "-m", "tests.fixtures.chains", path, "a-run"],
        cwd=ROOT,
        env=os.environ | {"JOURNAL": ""},
    )
    log = state.log_path("a-run", "plan")
    while not (log.exists() and "early" in log.read_text()):
        time.sleep(0.02)
    follower = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "logs", "-f"], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert follower.stdout and follower.stdout.readline().startswith(b"plan: attempt 1, ")
    assert follower.stdout.readline() == b"plan: early\n"
    go.touch()
    assert (engine.wait(), follower.wait()) == (0, 0)
    follower.stdout.close()


# run, with the real chain as far as its first step


def test_a_failed_step_gives_its_exit_code_and_message(project: Path) -> None:
    edit(project / "train.yaml", hardware="h1000")
    done = kuznia_process("run", project / "train.yaml")
    assert done.returncode == 2
    assert "plan: Failed" in done.stdout.splitlines()
    first, last = done.stderr.splitlines()
    assert first.startswith(f"error: {project}/train.yaml: hardware: 'h1000' ")
    run = state.runs()[0]
    log = state.log_path(run, "plan")
    assert last == f"error: step plan failed (exit code 2); its log: {log}"
    assert state.read(run)["phase"] == "Failed"


def test_json_is_all_that_stdout_has(project: Path) -> None:
    edit(project / "train.yaml", hardware="h1000")
    done = kuznia_process("run", project / "train.yaml", "--json")
    value = json.loads(done.stdout)
    assert (done.returncode, value["phase"], value["outputs"]) == (2, "Failed", {})
    assert "plan: Failed" in done.stderr


def test_a_second_run_of_the_same_spec_is_refused(project: Path) -> None:
    run = prepare(project / "train.yaml").run
    with state.lock(run):
        done = kuznia_process("run", project / "train.yaml")
    assert (done.returncode, done.stderr) == (
        3,
        f"error: run {run}: is already running (pid {os.getpid()}); "
        f"follow it with `kuznia logs {run} -f`, or stop it and run again\n",
    )


def test_ctrl_c_says_how_to_go_on(project: Path) -> None:
    run = prepare(project / "train.yaml").run
    command = [sys.executable, "-m", "cli.main", "run", str(project / "train.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not state.log_path(run, "plan").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == f"stopped; `kuznia run {project}/train.yaml` goes on from here\n"
    assert state.read(run)["phase"] == "Interrupted"


def test_check_shows_what_a_run_would_do(project: Path) -> None:
    result = kuznia("check", project / "train.yaml")
    assert result.exit_code == 0
    assert f"{project}/train.yaml: ok" in result.output.splitlines()
    assert state.runs() == []
    (plan,) = json.loads(kuznia("check", project / "train.yaml", "--json").stdout).values()
    assert plan["estimate"]["rows"] == 24
    edit(project / "train.yaml", hardware="h1000")
    assert (
        f"error: {project}/train.yaml: hardware: " in kuznia("check", project / "train.yaml").stderr
    )


# how it looks


def test_colours_only_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run(tmp_path)
    assert ESCAPE not in kuznia_process("status").stdout
    coloured = CliRunner().invoke(main, ["status"], color=True)
    assert ESCAPE in coloured.output
    monkeypatch.setenv("NO_COLOR", "1")
    assert ESCAPE not in CliRunner().invoke(main, ["status"], color=True).output


def test_progress_reads_well() -> None:
    facts = {"done": 12, "total": 60, "unit": "steps", "loss": 1.934, "samples_per_second": 4.07}
    assert describe(facts | {"eta_seconds": 123}) == (
        "12/60 steps, loss 1.93, 4.07 samples/s, 2 min 3 s left"
    )
    assert describe({"done": 56623104, "total": 269030016, "unit": "bytes"}) == "54/256 MiB"


def test_plain_progress_is_a_line_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(sys.stdout)
    for done in range(101):
        lines.progress("train", {"done": done, "total": 100, "unit": "steps"})
    assert len(capsys.readouterr().out.splitlines()) == 11


# doctor


def test_doctor_finds_this_machine_fit() -> None:
    done = kuznia_process("doctor", "--json")
    findings = {finding["what"]: finding["state"] for finding in json.loads(done.stdout)}
    assert findings["python"] == findings["store"] == findings["mlflow"] == "ok"
    assert {"cores", "memory", "gpu", "uv", "environment train", "libnuma"} <= set(findings)
    assert done.returncode == ("problem" in findings.values())


def test_doctor_says_what_blocks_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no database")
    monkeypatch.setenv("KUZNIA_STORE", str(tmp_path / "file" / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file")
    result = kuznia("doctor")
    assert result.exit_code == 1
    assert "choose another place by KUZNIA_STORE" in result.output
    assert "file is not a database; move it away or mend it" in result.output


def test_doctor_notes_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        except OSError:
            pass  # Someone else has it, which serves as well.
        assert "is taken; `kuznia serve` needs --port" in kuznia("doctor").output
