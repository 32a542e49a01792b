"""The gateway on a cluster: who is answered, by which way, and what is on record of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.cluster import S3, forwarded, get, kubectl, reaches, wait_for
from tests.e2e.gateway import IMAGE, Deployed, manifest, namespace
from tests.e2e.gateway import gateway as deployed

pytestmark = pytest.mark.timeout(600)
PESEL = "44051401359"
LOAD = """
import http.client, json, ssl, sys, threading, time
host, token, model = sys.argv[1:]
body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]})
headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
statuses, ids, ended = [], [], threading.Event()
def ask():
    try:
        connection = http.client.HTTPSConnection(host, timeout=15, context=context)
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
        ids.append(answer.getheader("x-request-id"))
    except OSError as error:
        statuses.append(repr(error))
    finally:
        connection.close()
def work():
    while not ended.is_set():
        ask()
        time.sleep(0.1)
threads = [threading.Thread(target=work) for _ in range(4)]
for each in threads: each.start()
sys.stdin.read()
ended.set()
for each in threads: each.join()
print(json.dumps([statuses, ids]))
"""


def address(tenant: str) -> str:
    """host:port of the model of a tenant."""
    return f"support-production.{tenant}-inference:8000"


@pytest.fixture(scope="module")
def gateway(mark: str, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(mark, s3, tmp_path_factory.mktemp("gateway")) as made:
        yield made


def test_only_who_has_a_key_of_the_tenant_is_answered(gateway: Deployed) -> None:
    token, _ = gateway.key(gateway.plain, "ada")
    other, _ = gateway.key(gateway.guarded, "ben")
    good = gateway.ask(gateway.plain, token)
    assert good.status_code == 200, good.text
    assert good.json()["choices"][0]["message"]["content"] == "You said: hello"
    for given, status in ((None, 401), (token[:-4] + "AAAA", 401), (other, 403)):
        refused = gateway.ask(gateway.plain, given)
        assert refused.status_code == status
        assert refused.json()["error"]["code"] in ("invalid_api_key", "permission_denied")


def test_the_guard_masks_what_a_model_says(gateway: Deployed) -> None:
    token, _ = gateway.key(gateway.guarded, "cleo")
    answer = gateway.ask(gateway.guarded, token, f"my number is {PESEL}")
    assert answer.status_code == 200, answer.text
    assert PESEL not in answer.text
    assert "my number is" in answer.json()["choices"][0]["message"]["content"]
    assert "x-kuznia-guard" not in answer.headers


def test_who_asks_too_often_is_told_to_wait(gateway: Deployed) -> None:
    token, _ = gateway.key(gateway.plain, "dan")
    with gateway.entry() as url:
        # The minute may end between them, once.
        answers = [gateway.post(url, gateway.plain, token, "hello") for _ in range(14)]
    statuses = [each.status_code for each in answers]
    assert set(statuses) == {200, 429}, [each.text for each in answers]
    assert 6 <= statuses.count(200) <= 12
    last = answers[statuses.index(429)]
    assert 1 <= int(last.headers["retry-after"]) <= 60
    assert last.json()["error"]["code"] == "rate_limit_exceeded"


def test_a_revoked_key_is_refused_within_ten_seconds(gateway: Deployed) -> None:
    token, jti = gateway.key(gateway.guarded, "eve")
    assert gateway.ask(gateway.guarded, token).status_code == 200
    done = gateway.operator.kuznia(
        "keys", "revoke", jti, "--store", gateway.operator.store, cwd=gateway.home
    )
    assert done.returncode == 0, done.stderr
    start = time.monotonic()
    with gateway.entry() as url:
        wait_for(
            "the key's end",
            lambda: gateway.post(url, gateway.guarded, token, "hello").status_code == 401,
            15,
        )
    assert time.monotonic() - start < 10


def test_there_is_no_way_around_the_gateway_and_the_guard(gateway: Deployed, mark: str) -> None:
    here = gateway.namespace
    guarded, plain = address(gateway.guarded), address(gateway.plain)
    inner = [f"gateway-guard.{here}:8090", f"gateway-limits.{here}:8081"]
    inner += [f"gateway-redis.{here}:6379"]
    entry = f"gateway.{here}:443"
    with namespace(f"{mark}-elsewhere") as elsewhere:
        # From another namespace, from the gateway's own, from another tenant's.
        for space in (elsewhere, here, f"{gateway.plain}-inference"):
            kubectl("-n", space, "apply", "-f", "-", text=manifest("caller.yaml", IMAGE=IMAGE))
            kubectl("-n", space, "wait", "pod/caller", "--for=condition=Ready", "--timeout=60s")
            found = reaches(space, "caller", entry, guarded, plain, *inner)
            assert found == {entry: True} | dict.fromkeys([guarded, plain, *inner], False), space
    # The guard cannot be walked around by the gateway itself either.
    found = reaches(here, "gateway-0", guarded, plain, *inner, container="envoy")
    assert found == {guarded: False, plain: True, inner[0]: True, inner[1]: True, inner[2]: False}
    found = reaches(here, "deploy/gateway-guard", guarded, plain, inner[2], container="guard")
    assert found == {guarded: True, plain: False, inner[2]: False}


def envoys(uid: str) -> list[int]:
    """Processes of Envoy in a pod, where its node is this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            group = (folder / "cgroup").read_text("utf-8").replace("_", "-")
        except OSError:
            continue  # It ended meanwhile.
        if line.startswith(b"/usr/local/bin/envoy\0--config-path") and uid in group:
            found.append(int(folder.name))
    return found


def restarts(space: str) -> int:
    """How often Envoy was started again; -1 while it is not ready."""
    status = get("pod", "gateway-0", space)["status"]
    (envoy,) = (each for each in status["containerStatuses"] if each["name"] == "envoy")
    return int(envoy["restartCount"]) if envoy["ready"] else -1


def test_an_envoy_that_is_killed_comes_back(gateway: Deployed) -> None:
    here = gateway.namespace
    token, _ = gateway.key(gateway.guarded, "fay")
    before = restarts(here)
    with gateway.entry() as url:
        answers = [gateway.post(url, gateway.guarded, token, "before") for _ in range(5)]
        killed = envoys(get("pod", "gateway-0", here)["metadata"]["uid"])
        if not killed:
            pytest.skip("the pod's node is another machine, where no process can be killed")
        for each in killed:
            os.kill(each, signal.SIGKILL)
    wait_for("Envoy", lambda: restarts(here) == before + 1, 60)
    answers.append(gateway.ask(gateway.guarded, token, "after"))
    assert {each.status_code for each in answers} == {200}


def test_a_rollout_loses_no_request(gateway: Deployed) -> None:
    here = gateway.namespace
    token, _ = gateway.key(gateway.guarded, "gus")
    kubectl("-n", here, "scale", "sts/gateway", "--replicas=2")
    kubectl("-n", here, "rollout", "status", "sts/gateway", "--timeout=90s")
    load = [f"gateway.{here}", token, f"{gateway.guarded}/support"]
    with subprocess.Popen(
        ["kubectl", "-n", here, "exec", "-i", "caller", "--", "python", "-c", LOAD, *load],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as asking:
        kubectl("-n", here, "rollout", "restart", "sts/gateway", "deploy/gateway-guard")
        for each in ("sts/gateway", "deploy/gateway-guard"):
            kubectl("-n", here, "rollout", "status", each, "--timeout=120s")
        statuses, ids = json.loads(asking.communicate(timeout=60)[0])
    assert len(statuses) > 50
    assert [each for each in statuses if each != 200] == []
    gateway.ids += ids


def test_every_answer_is_on_record_once_and_the_log_verifies(gateway: Deployed) -> None:
    """The last of this file: the gateway is stopped, so that all of its log is in the store."""
    here = gateway.namespace
    pods = ("pod/gateway-0", "pod/gateway-1")
    for each in pods:
        with forwarded(here, each, 9903) as metrics:
            # What a killed Envoy had under way is closed seconds later; else, at the next start.
            wait_for(
                "the end of every request",
                lambda at=metrics: (
                    "\nkuznia_audit_pending 0.0\n" in httpx.get(f"{at}/metrics").text
                ),
                30,
            )
    kubectl("-n", here, "scale", "sts/gateway", "--replicas=0")
    kubectl("-n", here, "wait", *pods, "--for=delete", "--timeout=90s")
    store = gateway.operator.store
    report = gateway.kuznia("audit", "verify", store, "--key", str(gateway.home / "key.pub"))
    assert report["findings"] == []
    records = gateway.kuznia("audit", "search", "--store", store)
    found = [each["id"] for each in records]
    assert len(found) == len(set(found))
    assert set(gateway.ids) <= set(found)
    of = {each["id"]: each for each in records}
    statuses = {of[each]["status"] for each in gateway.ids}
    assert statuses == {200, 401, 403, 429}
    masked = [each for each in records if (each.get("guard") or {}).get("action") == "mask"]
    assert [each["tenant"] for each in masked] == [gateway.guarded]
    lost = [each for each in records if each.get("ended") == "lost"]
    assert {each["status"] for each in lost} <= {200}
    answered = [each for each in records if each["status"] == 200 and each not in lost]
    assert {(each["tokens_in"], each["tokens_out"]) for each in answered} == {(3, 4)}
    assert {each["writer"].partition(".")[0] for each in records} == {"gateway-0", "gateway-1"}
