"""The end of a run told to people: real receivers on loopback, and what Argo 4.0.5 really says."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from kuznia import notifications, termination
from kuznia.failures import Failure, failures
from kuznia.serving import free_port
from kuznia.store import open_store
from steps import __main__ as steps
from steps.notify import main
from tests.fixtures.listening import Handler, listening
from workflows.environments import ROOT

SECRET = "T0/B0/sEcReT"
CONFIG = "tenant: acme\nmodel: support\ncard: {owner: Anna <anna@example.org>}\n"
RETRY = "retryStrategy.expression evaluated to false"
NO_MORE = "No more retries left"
LATE = "Pod was active on the node longer than the specified deadline"


def quoted(nodes: list[tuple[str, str, str]]) -> str:
    """`{{workflow.failures}}` as Argo gives it: (display name, message, second of its end)."""
    return json.dumps(
        json.dumps(
            [
                {
                    "displayName": name,
                    "message": message,
                    "templateName": name.partition("(")[0],
                    "phase": "Failed",
                    "podName": f"run-{name}",
                    "finishedAt": f"2026-11-21T15:00:{second}Z" if second else None,
                }
                for name, message, second in nodes
            ]
        ),
        ensure_ascii=False,
    )


FAULTY = quoted(
    [
        ("plan(0)", "main: Error (exit code 2): error: config: seed: is wrong\nerror: b\n", "03"),
        ("plan", RETRY, "14"),
        ("run", "", "14"),
    ]
)


def only(nodes: list[tuple[str, str, str]]) -> Failure:
    (failure,) = failures(quoted([*nodes, ("run", "", "59")]), "run")
    return failure


class Hook:
    """A Slack-compatible webhook: gives `answers` in turn, 200 after them."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[dict[str, Any]] = []
        self.pause = 0.0
        self.url = ""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    made = Hook()

    class Webhook(Handler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append({"path": self.path, **json.loads(body)})
            time.sleep(made.pause)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(made.answers.pop(0) if made.answers else 200)
                self.end_headers()

    with listening(Webhook) as url:
        made.url = f"{url}/{SECRET}"
        monkeypatch.setenv("KUZNIA_NOTIFY_WEBHOOK", made.url)
        yield made


class Inbox:
    """What an SMTP server took, and with which password."""

    def __init__(self) -> None:
        self.letters: list[Message] = []
        self.secure: list[bool] = []
        self.refusal = ""

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if self.refusal:
            return self.refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.letters.append(message_from_bytes(envelope.content, policy=default))
        self.secure.append(server.transport.get_extra_info("sslcontext") is not None)
        return "250 OK"

    def check(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        assert isinstance(data, LoginPassword)
        right = (data.login, data.password) == (b"bot", b"pass:word")
        return AuthResult(success=right, handled=False)


@contextlib.contextmanager
def smtp_server(inbox: Inbox, **options: Any) -> Iterator[int]:
    port = free_port()
    controller = Controller(inbox, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ssl.SSLContext:
    """A server's certificate for 127.0.0.1, trusted in this test."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return context


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(notifications, "TIMEOUT", 2.0)
    for name in ("KUZNIA_NOTIFY_WEBHOOK", "KUZNIA_SMTP_URL", "KUZNIA_RUN_URL"):
        monkeypatch.delenv(name, raising=False)


def mail(monkeypatch: pytest.MonkeyPatch, url: str, to: str = "ml@example.org") -> None:
    monkeypatch.setenv("KUZNIA_SMTP_URL", url)
    monkeypatch.setenv("KUZNIA_NOTIFY_EMAIL_FROM", "Kuznia <kuznia@example.org>")
    monkeypatch.setenv("KUZNIA_NOTIFY_EMAIL_TO", to)


def notify(status: str = "Failed", *words: str, failed: str = FAULTY) -> int:
    about = ["--run", "run", "--namespace", "acme-training", f"--config={CONFIG}", "--seconds=200"]
    return main([*about, "--status", status, "--failures", failed, *words])


@pytest.mark.parametrize(
    ("nodes", "kind", "sentence"),
    [
        (
            [("t(0)", "main: Error (exit code 2): error: a\nerror: b", "03"), ("t", RETRY, "14")],
            "input",
            "step t found a mistake in what a person wrote (exit code 2): a (and 1 more)",
        ),
        (
            [
                *(
                    (f"train({n})", f"main: Error (exit code 3): error: try {n}", f"2{n}")
                    for n in (2, 0, 10, 1)
                ),
                ("train", NO_MORE, "34"),
            ],
            "dependency",
            "step train could not do without something that did not answer in 4 attempts "
            "(exit code 3): try 10",
        ),
        (
            [("t(0)", "main: Error (exit code 75): saved", "1"), ("t", NO_MORE, "2")],
            "preempted",
            "step t was preempted each time (exit code 75): saved",
        ),
        ([("t", "main: Error (exit code 1)", "1")], "bug", "step t met a bug in Kuźnia"),
        (
            [("t(0)", "main: OOMKilled (exit code 137)", "05"), ("t", RETRY, "14")],
            "memory",
            "step t ran out of memory (exit code 137)",
        ),
        ([("t", "main: Error (exit code 137)", "5")], "killed", "step t was killed (exit"),
        ([("t(0)", "pod deleted", "25"), ("t", RETRY, "26")], "lost", "step t lost its pod"),
        (
            [("t", LATE, "02")],
            "deadline",
            "step t took longer than it may",
        ),
        (
            [
                ("t(0)", LATE, "28"),
                ("t", "retry exceeded workflow deadline 2026-11-21 15:02:27 +0000 UTC", "32"),
            ],
            "deadline",
            "step t ran, or waited for a node or a lock, when the run's time was over",
        ),
        (
            [("t", "Step exceeded its deadline", "35")],
            "deadline",
            "step t ran, or waited for a node or a lock, when the run's time was over",
        ),
        (
            [("t(0)", "workflow shutdown with strategy:  Stop", "")],
            "stopped",
            "step t had not ended when a person stopped it",
        ),
        (
            [("t", "Pod ephemeral local storage usage exceeds the limit 5Mi. ", "1")],
            "evicted",
            "step t was evicted from its node: Pod ephemeral local storage usage",
        ),
        (
            [("t", "Pod failed before main container starts due to ImagePullBackOff: no", "1")],
            "start",
            "step t did not start: Pod failed before",
        ),
        (
            [("t", "wait: Error (exit code 64): open /var/run/argo/o: no such file", "1")],
            "argo",
            "step t could not get its inputs or hand over its outputs (exit code 64): open",
        ),
        ([("t", "something new", "1")], "other", "step t failed: something new"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_a_failure_is_told_in_one_sentence(
    nodes: list[tuple[str, str, str]], kind: str, sentence: str
) -> None:
    failure = only(nodes)
    assert failure.kind == kind
    assert failure.sentence().startswith(sentence)
    assert "\n" not in failure.sentence()


def test_only_steps_that_failed_for_good_count_and_the_first_leads() -> None:
    text = quoted(
        [
            ("run.onExit(0)", "main: Error (exit code 3): error: webhook", "40"),
            ("run.onExit", NO_MORE, "41"),
            ("flaky(0)", "main: Error (exit code 3): error: away", "01"),
            ("later", "main: Error (exit code 1)", "30"),
            ("first(0)", "main: Error (exit code 2): error: wrong", "20"),
            ("first", RETRY, "31"),
            ("run", "", "31"),
        ]
    )
    assert [failure.step for failure in failures(text, "run")] == ["first", "later"]


def test_what_go_quotes_and_json_does_not_is_read_too() -> None:
    text = r'"[{\"displayName\":\"t\",\"message\":\"a\x7fb \U000e0001 \\u003c ą\"}]"'
    (failure,) = failures(text, "run")
    assert failure.problems == ["a\x7fb \U000e0001 < ą"]
    assert failures('"null"', "run") == failures("null", "run") == []
    for bad in ('"[', "{}", '[{"name": 1}]', '"\\q"]'):
        with pytest.raises(ValueError):
            failures(bad, "run")


def test_a_failed_run_reaches_the_webhook(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KUZNIA_RUN_URL", "https://argo.example.org/{namespace}/{run}")
    assert notify("Failed", "--outputs", str(tmp_path / "out/summary.json")) == 0
    (got,) = hook.got
    assert got["path"] == f"/{SECRET}"
    assert got["text"].splitlines() == [
        "*acme/support failed*",
        "step plan found a mistake in what a person wrote (exit code 2): config: seed: is wrong "
        "(and 1 more)",
        "run run took 0:03:20",
        "owner: Anna &lt;anna@example.org&gt;",
        "https://argo.example.org/acme-training/run",
    ]
    line, told = capsys.readouterr().out.splitlines()
    summary = json.loads(line)
    assert told == "webhook: told"
    assert summary == json.loads((tmp_path / "out/summary.json").read_text("utf-8"))
    expected = {
        "result": "failure",
        "step": "plan",
        "fault": "input",
        "exit_code": 2,
        "tenant": "acme",
        "model": "support",
        "seconds": 200.0,
        "trained": False,
    }
    assert {key: summary[key] for key in expected} == expected


def test_a_success_tells_what_the_steps_left_and_is_told_once(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KUZNIA_STORE", str(tmp_path / "store"))
    store = open_store(str(tmp_path / "store"))
    left = {
        "data-check/result": {"finished": 100.0, "outputs": {}},
        "fetch-base/result": {"finished": 160.0, "outputs": {}},
        "train/started": {"at": 190.5},
        "train/result": {"finished": 300.0, "outputs": {"samples_per_second": 7.5}},
        "evaluate/result": {"outputs": {"verdict": "promote"}},
        "export/result": {"outputs": {"version": "abcdef012345"}},
    }
    for key, value in left.items():
        store.write(f"runs/acme/run/{key}.json", json.dumps(value).encode())
    assert notify("Succeeded", "--uid=u1", failed="null") == 0
    assert notify("Succeeded", "--uid=u1", "--attempt=1", failed="null") == 0
    assert "version abcdef012345, verdict promote" in hook.got[0]["text"]
    assert len(hook.got) == 1
    first, _, second, before = capsys.readouterr().out.splitlines()
    assert first == second
    assert before == "webhook: told before"
    summary = json.loads(first)
    assert (summary["trained"], summary["queue_seconds"]) == (True, 30.5)
    assert summary["samples_per_second"] == 7.5
    assert notify("Succeeded", "--uid=u2", failed="null") == 0
    assert len(hook.got) == 2


def test_nobody_to_tell_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert notify("Error", failed="null") == 0
    line, said = capsys.readouterr().out.splitlines()
    assert json.loads(line)["reason"] == "no step failed; see the workflow's message in Argo"
    assert said.startswith("nobody to tell: none of KUZNIA_NOTIFY_WEBHOOK, KUZNIA_SMTP_URL")


@pytest.mark.parametrize(
    ("config", "tenant", "model"),
    [
        ("tenant: acme\nmodel: [unclosed", "acme", ""),
        ("tenant: ../other\nmodel: ok", "here", "ok"),
        ("just words", "here", ""),
        ("card: 7", "here", ""),
    ],
)
def test_a_run_spec_that_is_wrong_is_still_told_of(
    config: str, tenant: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run=run", "--namespace=here-training", f"--config={config}", "--status=Failed"]
    assert main([*words, "--failures=nonsense"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[0])
    assert (summary["tenant"], summary["model"]) == (tenant, model)
    assert "--failures: " in said.err


def test_a_run_in_a_tenants_workspace_is_that_tenants(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUZNIA_TENANT", "here")
    words = ["--run=run", "--namespace=here-training", f"--config={CONFIG}", "--status=Failed"]
    assert main([*words, "--failures=null"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["tenant"] == "here"


def test_a_receiver_that_stumbles_is_tried_three_times(
    hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    hook.answers = [500, 429]
    assert notify() == 0
    assert len(hook.got) == 3
    hook.answers = [500, 502, 503]
    assert notify() == 3
    said = capsys.readouterr()
    assert "error: KUZNIA_NOTIFY_WEBHOOK (127.0.0.1): answered 503; check the receiver" in said.err
    assert SECRET not in said.out + said.err


def test_a_receiver_that_refuses_is_not_asked_again(
    hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    hook.answers = [404]
    assert notify() == 2
    assert len(hook.got) == 1
    said = capsys.readouterr()
    assert "answered 404; put the address of a live incoming webhook there" in said.err
    assert SECRET not in said.out + said.err


def test_a_slow_receiver_and_an_absent_one_end_with_3(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notifications, "TIMEOUT", 0.1)
    hook.pause = 0.3
    assert notify() == 3
    assert "no answer (ReadTimeout)" in capsys.readouterr().err
    monkeypatch.setenv("KUZNIA_NOTIFY_WEBHOOK", f"http://127.0.0.1:9/{SECRET}")
    assert notify() == 3
    said = capsys.readouterr()
    assert "no answer (ConnectError)" in said.err
    assert SECRET not in said.out + said.err


def test_a_run_that_succeeded_stays_so_when_nobody_can_be_told(hook: Hook) -> None:
    hook.answers = [500] * 6
    assert notify("Succeeded", "--attempt=0", "--retries=1") == 3
    assert notify("Succeeded", "--attempt=1", "--retries=1") == 0
    hook.answers = [404]
    assert notify("Succeeded", "--attempt=0", "--retries=1") == 0


def test_every_wrong_setting_is_named_and_no_secret_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUZNIA_NOTIFY_WEBHOOK", f"hooks.example.org/{SECRET}")
    mail(monkeypatch, f"smtp://bot:{SECRET}@mail:port", to="nobody, ml@example.org")
    assert notify() == 2
    said = capsys.readouterr()
    assert [line.partition(":")[2].strip() for line in said.err.splitlines()] == [
        "KUZNIA_NOTIFY_WEBHOOK: is not an address; write https://host/... there",
        "KUZNIA_NOTIFY_EMAIL_TO: 'nobody' is not an e-mail address; correct it",
        "KUZNIA_SMTP_URL: is not an address; write smtp://host/... there",
    ]
    assert SECRET not in said.out + said.err


def test_mail_without_a_password_goes_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox()
    with smtp_server(inbox) as port:
        mail(monkeypatch, f"smtp://127.0.0.1:{port}", to="ml@example.org, Ola <ola@example.org>")
        assert notify() == notify() == 0
    first, second = inbox.letters
    assert first["Subject"] == "acme/support failed"
    assert first["To"] == "ml@example.org, Ola <ola@example.org>"
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Message-ID"].startswith("<run.") and first["Message-ID"].endswith("@example.org>")
    assert "found a mistake in what a person wrote" in first.get_content()  # type: ignore[attr-defined]


def test_names_with_other_letters_go_to_a_server_that_takes_only_ascii_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inbox = Inbox()
    with smtp_server(inbox, enable_SMTPUTF8=False) as port:
        mail(monkeypatch, f"smtp://127.0.0.1:{port}", to="Żaneta <ola@example.org>")
        monkeypatch.setenv("KUZNIA_NOTIFY_EMAIL_FROM", "Kuźnia <kuznia@example.org>")
        assert notify() == 0
    (letter,) = inbox.letters
    assert (letter["From"], letter["To"]) == (
        "Kuźnia <kuznia@example.org>",
        "Żaneta <ola@example.org>",
    )


def test_mail_with_a_password_is_encrypted_or_not_sent(
    certificate: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inbox = Inbox()
    login = {"authenticator": inbox.check, "auth_required": True}
    with smtp_server(inbox, tls_context=certificate, require_starttls=True, **login) as port:
        mail(monkeypatch, f"smtp://bot:pass%3Aword@127.0.0.1:{port}")
        assert notify() == 0
        mail(monkeypatch, f"smtp://bot:{SECRET}@127.0.0.1:{port}".replace("/B0/", "%2F"))
        assert notify() == 2
    with smtp_server(inbox, ssl_context=certificate) as port:
        mail(monkeypatch, f"smtps://127.0.0.1:{port}")
        assert notify() == 0
        monkeypatch.delenv("SSL_CERT_FILE")
        assert notify() == 2
    with smtp_server(inbox) as port:
        mail(monkeypatch, f"smtp://bot:word@127.0.0.1:{port}")
        assert notify() == 2
    assert len(inbox.letters) == 2
    assert inbox.secure == [True, True]
    said = capsys.readouterr().err
    assert "refused user and password; correct them" in said
    assert "its certificate is not trusted" in said
    assert "offers no STARTTLS, and a password is not sent in the clear" in said
    assert SECRET not in said and "word@" not in said


@pytest.mark.parametrize(("refusal", "code"), [("550 no such person", 2), ("451 later", 3)])
def test_a_refused_recipient(
    refusal: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox = Inbox()
    inbox.refusal = refusal
    with smtp_server(inbox) as port:
        mail(monkeypatch, f"smtp://127.0.0.1:{port}")
        assert notify() == code
    assert f"refused sender or recipients ({refusal[:3]})" in capsys.readouterr().err


def test_one_receiver_that_fails_does_not_keep_the_other_from_it(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook.answers = [404]
    mail(monkeypatch, "smtp://127.0.0.1:9")
    assert notify() == 3
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A termination log, as a container has one."""
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv("KUZNIA_TERMINATION_LOG", str(path))
    return path


def test_a_step_leaves_its_reason_where_kubernetes_looks(
    log: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--text", "config=seed: -1", "--text", "run=r", "--outputs", str(tmp_path / "o")]
    assert steps.main(["plan", *words]) == 2
    said = capsys.readouterr().err
    assert log.read_text("utf-8") == said.strip()
    assert said.startswith("error: config: tenant: is missing; add it\n")
    assert len(said.splitlines()) > 3


def test_a_long_reason_is_cut_between_characters(log: Path) -> None:
    termination.report([f"ąęł {number} " * 9 for number in range(500)])
    left = log.read_bytes()
    assert 4000 < len(left) <= 4096
    assert left.decode().endswith("\nerror: more in the log")
    termination.report(["ą" * 4000], retried=True)
    assert len(log.read_bytes()) <= 1024


def test_without_a_termination_log_nothing_is_made(log: Path) -> None:
    log.unlink()
    termination.report(["a fault"])
    assert not log.exists()


def test_a_bug_leaves_its_last_line_and_its_traceback(log: Path, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text("[")
    words = ["plan", "--inputs", tmp_path / "in.json", "--outputs", tmp_path / "out.json"]
    done = subprocess.run(
        [sys.executable, "-m", "steps", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert log.read_text("utf-8") == "error: " + done.stderr.splitlines()[-1]
    assert "JSONDecodeError" in log.read_text("utf-8")


def test_inputs_may_come_from_files_and_the_first_start_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": f"question {n}", "output": f"answer {n}"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = {
        "tenant": "acme",
        "model": "support",
        "base": "smollm2-135m-instruct",
        "hardware": "cpu",
        "data": {"train": (tmp_path / "rows.jsonl").as_uri(), "format": "alpaca"},
        "card": {"purpose": "answers questions", "owner": "Anna", "risk": "minimal"},
    }
    monkeypatch.setenv("KUZNIA_STORE", str(tmp_path / "store"))
    before = time.time()
    plan = ["--text", f"config={json.dumps(spec)}", "--text", "run=r-1"]
    place = ["--outputs", str(tmp_path / "plan.json"), "--workdir", str(tmp_path / "work")]
    assert steps.main(["plan", *plan, *place]) == 0
    check = ["--input", f"plan=@{tmp_path / 'plan.json'}", "--workdir", str(tmp_path / "work")]
    outputs = ["--outputs", str(tmp_path / "data-check.json")]
    folder = tmp_path / "store/runs/acme/r-1/data-check"
    for _ in range(2):
        assert steps.main(["data-check", *check, *outputs]) == 0
        started = json.loads((folder / "started.json").read_text())["at"]
        (folder / "result.json").replace(tmp_path / "result.json")
        finished = json.loads((tmp_path / "result.json").read_text())["finished"]
        assert before <= started <= finished <= time.time()
        before = min(before, started)
    assert json.loads((tmp_path / "data-check.json").read_text())["train_report"]["rows"] > 0
