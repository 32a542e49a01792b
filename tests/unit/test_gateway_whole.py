"""The whole gateway of a laptop: Envoy, guard, limits and audit log, all real, and killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kuznia import settings
from kuznia.audit.keys import public_keys, public_path
from kuznia.audit.verify import verify
from kuznia.gateway.served import listed
from kuznia.gateway.table import Table
from kuznia.keys.ledger import issue, ledger, revoke
from kuznia.serving import free_port
from kuznia.store import open_store
from services.gateway.laptop import Gateway, gateway
from tests.fixtures.gateway_case import CHAT, Upstream, own_keys, records, target
from workflows.environments import envoy

SECRET = "44051401359"
"""A PESEL whose check digit is right."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


def table(port: int) -> Table:
    return Table(
        targets=(
            target("acme/plain", port),
            target("acme/guarded", port, guard="default"),
            target("globex/strict", port, guard="strict", risk="high"),
        ),
        access=own_keys(),
    )


def token(tenant: str, **more: Any) -> str:
    _, made = issue(
        open_store(settings.store_uri()), tenant, risks=("minimal", "limited", "high"), **more
    )
    return made


def ask(gate: Gateway, key: str, model: str, text: str = "Hello", **body: Any) -> httpx.Response:
    return httpx.post(
        gate.url.removesuffix("/v1") + CHAT,
        json={"model": model, "messages": [{"role": "user", "content": text}], **body},
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
        verify=False,
        timeout=20,
    )


def test_guarded_counted_and_on_record(isolated: Path, upstream: Upstream) -> None:
    with gateway(lambda: table(upstream.port), envoy(), port=free_port()) as gate:
        key = token("acme", name="shop")
        plain = ask(gate, key, "acme/plain", f"My number is {SECRET}.")
        assert plain.status_code == 200, plain.text
        masked = ask(gate, key, "acme/guarded", f"My number is {SECRET}.")
        assert masked.status_code == 200, masked.text
        assert "x-kuznia-guard" not in masked.headers
        streamed = ask(gate, key, "acme/guarded", "Hello", stream=True)
        assert "I am acme/guarded" in _text(streamed)
        blocked = ask(
            gate,
            token("globex"),
            "globex/strict",
            "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEH\n",
        )
        assert (blocked.status_code, blocked.json()["error"]["code"]) == (400, "content_filter")
        _, other = issue(open_store(settings.store_uri()), "acme", name="lost")
        jti = next(each["jti"] for each in _ledger() if each["name"] == "lost")
        assert ask(gate, other, "acme/plain").status_code == 200
        revoke(open_store(settings.store_uri()), jti)
        began = time.monotonic()
        while ask(gate, other, "acme/plain").status_code != 401:
            assert time.monotonic() - began < 10
            gate.look()
            time.sleep(0.2)
    found = {each["id"]: each for each in records()}
    assert found[plain.headers["x-request-id"]].get("guard") is None
    assert found[plain.headers["x-request-id"]]["tokens_out"] == 7
    verdict = found[masked.headers["x-request-id"]].get("guard")
    assert verdict["input"], verdict
    assert found[masked.headers["x-request-id"]]["policy"]
    end = found[streamed.headers["x-request-id"]]
    assert (end["tokens_in"], end["tokens_out"], end.get("ended", "yes")) == (5, 7, "yes")
    refused = found[blocked.headers["x-request-id"]]
    assert (refused["tenant"], refused["status"]) == ("globex", 400)
    assert refused["guard"]["action"] == "block"
    store = open_store(settings.store_uri())
    folder = Path(settings.store_uri().removeprefix("file://")) / "audit"
    logged = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert SECRET.encode() not in logged
    assert b"Hello" not in logged
    assert verify(store, public_keys([public_path()])).findings == []


def test_a_full_queue_is_429_and_a_model_that_is_gone_503(
    isolated: Path, upstream: Upstream
) -> None:
    gone = target("acme/gone", free_port(), guard="default")
    known = table(upstream.port)
    known = known.model_copy(update={"targets": (*known.targets, gone)})
    with gateway(lambda: known, envoy(), port=free_port()) as gate:
        key = token("acme")
        away = ask(gate, key, "acme/gone")
        assert (away.status_code, away.json()["error"]["code"]) == (503, "model_unavailable")
        assert "retry-after" not in away.headers
        upstream.status = 503
        for model in ("acme/plain", "acme/guarded"):
            for more in ({}, {"stream": True}):
                full = ask(gate, key, model, **more)
                assert (full.status_code, full.headers["retry-after"]) == (429, "1"), model


def _text(streamed: httpx.Response) -> str:
    found = ""
    for line in streamed.text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                found += choice["delta"].get("content") or ""
    return found


def _ledger() -> list[dict[str, Any]]:
    return [key.model_dump() for key in ledger(open_store(settings.store_uri()))]


def test_the_commands_of_a_laptop(isolated: Path, upstream: Upstream) -> None:
    """kuznia gateway finds what is served, also later; a key, a question, the log; Ctrl-C ends."""
    port = free_port()

    def kuznia(*words: str) -> str:
        line = [sys.executable, "-m", "cli.main", *words]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    line = [sys.executable, "-m", "cli.main", "gateway", "--port", str(port), "--guard", "off"]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout
        assert running.stdout.readline().startswith(f"ready: http://127.0.0.1:{port}/v1")
        key = kuznia("keys", "create", "--tenant", "acme", "--name", "shop").strip()
        at = ("--url", f"http://127.0.0.1:{port}/v1", "--key", key)
        with listed(target("acme/late", upstream.port)):
            time.sleep(3)
            assert "I am acme/late" in kuznia("chat", "acme/late", "Who are you?", *at)
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 0
    found = json.loads(kuznia("audit", "search", "--caller", "shop", "--json"))
    asked = [each for each in found if each["path"] == CHAT]
    assert [each["model"] for each in asked] == ["acme/late"]
    kuznia("audit", "verify")


@pytest.mark.timeout(180)
def test_one_record_each_whatever_is_killed(isolated: Path, upstream: Upstream) -> None:
    """Guard, audit log and Envoy are killed again and again, clients leave, the store goes away."""
    dice = random.Random(7)
    answered: dict[str, int] = {}
    stop = threading.Event()
    with gateway(lambda: table(upstream.port), envoy(), port=free_port()) as gate:
        keys = {"acme": token("acme"), "globex": token("globex"), "nobody": "none"}
        askers = [
            threading.Thread(target=_ask_on, args=(gate, keys, seed, answered, stop))
            for seed in range(6)
        ]
        for each in askers:
            each.start()
        store = Path(settings.store_uri().removeprefix("file://"))
        for turn in range(9):
            time.sleep(dice.uniform(0.3, 1.0))
            victim = ("guard", "audit", "envoy")[turn % 3]
            gate.processes[victim].send_signal(signal.SIGKILL)
            gate.processes[victim].wait()
            if turn == 3:
                (store / "audit").write_text("no folder")
            if turn == 7:
                (store / "audit").unlink()
            gate.look()
        time.sleep(1)
        stop.set()
        for each in askers:
            each.join()
    # What a killed one left is the next one's work.
    log = gate.folder / "audit.log"
    before = log.read_text().count("writes as")
    with gateway(lambda: table(upstream.port), envoy(), port=free_port()):
        while log.read_text().count("writes as") == before:
            time.sleep(0.1)
        # Requests of a killed Envoy have no end; five seconds later they get their record.
        time.sleep(7)
    found = records()
    times = Counter(each["id"] for each in found)
    assert len(answered) > 100
    assert [key for key in answered if times[key] != 1] == []
    assert [key for key, count in times.items() if count > 1] == []
    wrong = [
        each["id"]
        for each in found
        if each["id"] in answered and each["status"] != answered[each["id"]]
    ]
    assert wrong == []
    kept = open_store(settings.store_uri())
    assert verify(kept, public_keys([public_path()])).findings == []


def _ask_on(
    gate: Gateway, keys: dict[str, str], seed: int, answered: dict[str, int], stop: threading.Event
) -> None:
    dice = random.Random(seed)
    models = ("acme/plain", "acme/guarded", "globex/strict", "acme/nothing")
    while not stop.is_set():
        tenant, model = dice.choice(list(keys)), dice.choice(models)
        try:
            reply = ask(gate, keys[tenant], model, stream=dice.random() < 0.3)
        except httpx.TransportError:
            continue
        answered[reply.headers["x-request-id"]] = reply.status_code
