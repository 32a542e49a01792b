"""The gateway as helm/gateway deploys it from a registry in git: who is answered, by which way,
and what is on record of it.

By hand, because no secret store is here: the Secrets. Models are stood in for; the gateway is real.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import string
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import yaml

from kuznia import __version__
from kuznia.chart_values import serving_values
from kuznia.contracts.catalogue import load_catalogue
from kuznia.generated import GENERATED, write
from kuznia.tree import load_tree
from tests.e2e.cluster import HERE, S3, Tenant, forwarded, get, kubectl, run, wait_for
from tests.fixtures import checkouts
from workflows.environments import ROOT

pytestmark = pytest.mark.timeout(600)
IMAGE = f"kuznia/gateway:{__version__}"
PESEL = "44051401359"
MODEL = """
import json
from aiohttp import web
async def answer(request):
    asked = await request.json()
    said = "You said: " + asked["messages"][-1]["content"]
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    message = {"role": "assistant", "content": said}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return web.json_response({"id": "1", "object": "chat.completion", "created": 0,
        "model": asked["model"], "choices": [choice], "usage": usage})
app = web.Application()
app.router.add_post("/v1/chat/completions", answer)
web.run_app(app, port=8000, print=None)
"""
REACHES = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(target):
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True
with ThreadPoolExecutor(8) as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(reached, sys.argv[1:])))))
"""
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
SMALL = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}}


@dataclass
class Deployed:
    """A gateway, two tenants behind it, and what a person of the platform has."""

    namespace: str
    guarded: str
    """A tenant with the guard."""
    plain: str
    """A tenant without it, each of whose callers may ask six times a minute."""
    operator: Tenant
    home: Path
    trusted: ssl.SSLContext
    """Trusts the gateway's certificate and no other."""
    ids: list[str] = field(default_factory=list)
    """x-request-id of every answer that came."""

    def ask(self, tenant: str, token: str | None, says: str = "hello", **more: Any) -> Any:
        """What POST /v1/chat/completions of a tenant's model answers."""
        with self.entry() as url:
            return self.post(url, tenant, token, says, **more)

    @contextmanager
    def entry(self) -> Iterator[str]:
        """The gateway's address for this machine."""
        with forwarded(self.namespace, "service/gateway", 443) as url:
            yield url.replace("http://", "https://")

    def post(self, url: str, tenant: str, token: str | None, says: str, **more: Any) -> Any:
        body = {"model": f"{tenant}/support", "messages": [{"role": "user", "content": says}]}
        answer = httpx.post(
            f"{url}/v1/chat/completions",
            json=body | more,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=20,
            verify=self.trusted,
        )
        self.ids.append(answer.headers["x-request-id"])
        return answer

    def key(self, tenant: str, name: str) -> tuple[str, str]:
        """A new key for a tenant's models: its token and its id."""
        risks = "minimal,limited,high"
        given = ("--tenant", tenant, "--name", name, "--risks", risks)
        said = self.kuznia("keys", "create", *given, "--store", self.operator.store)
        return said["token"], said["jti"]

    def kuznia(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        done = self.operator.kuznia(*arguments, "--json", cwd=self.home)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


def address(tenant: str) -> str:
    """host:port of the model of a tenant."""
    return f"support-production.{tenant}-inference:8000"


def registry(root: Path, home: Path, names: dict[str, Any], s3: S3, store: str) -> Path:
    """A rendered checkout with these tenants, a release each, and the gateway."""
    redis = json.loads(kubectl("-n", "argocd", "get", "deploy", "argocd-redis", "-o", "json"))
    entry = {
        "replicas": 1,
        "threads": 1,
        "volume": {"size": "1Gi"},
        "images": {"redis": redis["spec"]["template"]["spec"]["containers"][0]["image"]},
        "settings": {
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ENDPOINT_URL": s3.inside,
        },
        "secret": "store",
        "tls": "tls",
        "drain": {"wait_seconds": 3, "finish_seconds": 10},
        "guard": {"replicas": 1},
        "limits": {"replicas": 1},
        "network": {"egress": [{"ports": [{"protocol": "TCP", "port": 7070}]}]},
        "resources": dict.fromkeys(
            ("envoy", "configure", "audit", "guard", "limits", "redis"), SMALL
        ),
    }
    public = (home / "public.pem").read_text("utf-8")
    checkouts.checkout(root, **{name: checkouts.tenant(name, **m) for name, m in names.items()})
    files = {f"{name}/support/production.yaml": checkouts.release(name) for name in names}
    access = {"store": store, "keys": [public]}
    platform = {**checkouts.PLATFORM_FILE, "entry": entry, "access": access}
    checkouts.write(root, {"platform.yaml": platform, **files})
    write(load_tree(root), load_catalogue())
    return root


@contextmanager
def namespace(name: str, **labels: str) -> Iterator[str]:
    """A namespace that admits restricted pods only; removed at the end."""
    labels |= {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": name, "labels": labels}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    kubectl("create", "-f", "-", text=json.dumps(made))
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def manifest(name: str, **values: str) -> str:
    return string.Template((HERE / "manifests" / name).read_text("utf-8")).substitute(values)


def model(root: Path, tenant: str, gateway: str) -> None:
    """Stand in for a tenant's release, behind the wall that helm/vllm puts there."""
    values = {"NAME": "support-production", "TENANT": tenant, "MODEL": "support"}
    values |= {"STAGE": "production", "IMAGE": IMAGE, "PROGRAM": json.dumps(MODEL)}
    kubectl("-n", f"{tenant}-inference", "apply", "-f", "-", text=manifest("model.yaml", **values))
    tree = load_tree(root)
    platform = tree.platform.model_copy(update={"gateway": gateway})
    given = serving_values(tenant, tree.tenants[tenant], platform, load_catalogue())
    (release,) = tree.of(tenant)
    wall = run(
        *("helm", "template", "support-production", str(ROOT / "helm" / "vllm"), "--values", "-"),
        *("--set", "model=support,release=production", "--values", str(root / release.path)),
        *("--show-only", "templates/networkpolicy.yaml"),
        text=yaml.safe_dump(given),
    )
    kubectl("apply", "-f", "-", text=wall)


@pytest.fixture(scope="module")
def gateway(mark: str, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    home = tmp_path_factory.mktemp("gateway")
    place, guarded, plain = f"{mark}-entry", f"{mark}-shop", f"{mark}-bank"
    keys = s3.account(place)
    here = {"AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": s3.here}
    operator = Tenant("platform", f"s3://{place}", keys | here | {"KUZNIA_HOME": str(home)})
    # The first key that is asked for makes the one that signs all of them.
    operator.kuznia("keys", "create", "--tenant", plain, "--store", operator.store, cwd=home)
    (home / "public.pem").write_text(operator.kuznia("keys", "public", cwd=home).stdout, "utf-8")
    run("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(home / "key.pem"))
    run("openssl", "pkey", "-in", str(home / "key.pem"), "-pubout", "-out", str(home / "key.pub"))
    names = {guarded: {}, plain: {"guard": "off", "key_limits": {"requests_per_minute": 6}}}
    root = registry(home / "checkout", home, names, s3, operator.store)
    with ExitStack() as stack:
        stack.enter_context(namespace(place))
        for name in names:
            made = stack.enter_context(namespace(f"{name}-inference"))
            kubectl("label", "namespace", made, "kuznia.workspace=inference")
            model(root, name, place)
        literals = [f"--from-literal={name}={value}" for name, value in keys.items()]
        kubectl("-n", place, "create", "secret", "generic", "store", *literals)
        file = f"--from-file={home / 'key.pem'}"
        kubectl("-n", place, "create", "secret", "generic", "kuznia-audit", file)
        authority, trusted = trustme.CA(), ssl.create_default_context()
        authority.configure_trust(trusted)
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(home / "tls.key")
        certificate.cert_chain_pems[0].write_to_path(home / "tls.crt")
        pair = (f"--key={home / 'tls.key'}", f"--cert={home / 'tls.crt'}")
        kubectl("-n", place, "create", "secret", "tls", "tls", *pair)
        values = root / GENERATED / "platform" / "values" / "gateway.yaml"
        run(
            *("helm", "install", "gateway", str(ROOT / "helm" / "gateway")),
            *("--namespace", place, "--values", str(values)),
        )
        for each in ("sts/gateway", "deploy/gateway-guard", "deploy/gateway-limits"):
            kubectl("-n", place, "rollout", "status", each, "--timeout=120s")
        for name in names:
            waiting = ("wait", "pod/support-production", "--for=condition=Ready")
            kubectl("-n", f"{name}-inference", *waiting, "--timeout=60s")
        yield Deployed(place, guarded, plain, operator, home, trusted)


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


def reaches(space: str, pod: str, *targets: str, container: str = "main") -> dict[str, bool]:
    """Which of the targets (host:port) a pod can connect to."""
    line = ("exec", pod, "-c", container, "--", "python", "-c", REACHES, *targets)
    found: dict[str, bool] = json.loads(kubectl("-n", space, *line))
    return found


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
