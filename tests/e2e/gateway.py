"""A gateway on the cluster as helm/gateway makes it of a registry in git, with models stood in for.

By hand, because no secret store is here: the Secrets.
"""

from __future__ import annotations

import json
import ssl
import string
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trustme
import yaml

from kuznia.chart_values import serving_values
from kuznia.contracts.catalogue import load_catalogue
from kuznia.generated import GENERATED, write
from kuznia.tree import load_tree
from tests.e2e.cluster import (
    CHART_IMAGES,
    HERE,
    S3,
    Tenant,
    forwarded,
    image_of,
    kubectl,
    need_api,
    need_program,
    run,
)
from tests.fixtures import checkouts
from workflows.environments import ROOT

IMAGE = image_of("gateway")
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
    platform = {**checkouts.PLATFORM_FILE, "images": CHART_IMAGES, "entry": entry, "access": access}
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


@contextmanager
def gateway(mark: str, s3: S3, home: Path) -> Iterator[Deployed]:
    """The gateway with two tenants; everything is removed at the end."""
    need_program("openssl")
    # Its Redis has an image that a small cluster need not have twice.
    need_api("applications.argoproj.io", "Argo CD")
    place, guarded, plain = f"{mark}-entry", f"{mark}-shop", f"{mark}-bank"
    keys = s3.account(place)
    here = {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": s3.here}
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
