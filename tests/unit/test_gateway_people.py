"""People of the organisation at the gateway, and limits: a real identity provider, real Envoy."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from kuznia.contracts.limits import Limits
from kuznia.contracts.release import Release
from kuznia.contracts.tenant import Issuer, Tenant
from kuznia.gateway.folder import LIMITS
from kuznia.gateway.limits import configuration
from kuznia.gateway.table import Table
from kuznia.serving import free_port
from kuznia.tree import Deployed
from tests.fixtures.gateway_case import CHAT, Access, Running, Upstream, running, target

CLIENT = "kuznia"
COUNTERS = tuple(sorted(Limits.model_fields))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@contextmanager
def provider() -> Iterator[str]:
    """An OpenID provider in a process of its own; its issuer."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "oidc_provider_mock", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            try:
                found = httpx.get(
                    f"http://localhost:{port}/.well-known/openid-configuration", trust_env=False
                )
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield str(found.json()["issuer"])
    finally:
        process.terminate()
        process.wait(10)


def id_token(issuer: str, person: str, claims: dict[str, Any]) -> str:
    """What the provider gives a person who logs in with a browser."""
    back = "http://localhost/back"
    with httpx.Client(base_url=issuer, trust_env=False) as client:
        client.put(f"/users/{person}", json=claims).raise_for_status()
        asked = {"client_id": CLIENT, "redirect_uri": back, "response_type": "code"}
        reply = client.post(
            "/oauth2/authorize",
            params=asked | {"scope": "openid", "state": "s"},
            data={"sub": person},
        )
        (code,) = parse_qs(urlsplit(reply.headers["location"]).query)["code"]
        got = client.post(
            "/oauth2/token",
            data={"grant_type": "authorization_code", "code": code, "redirect_uri": back},
            auth=(CLIENT, "secret"),
        )
        return str(got.json()["id_token"])


def test_people_of_a_group_ask_the_models_of_its_tenant(upstream: Upstream, tmp_path: Path) -> None:
    with provider() as issuer:
        jwks = httpx.get(f"{issuer}/.well-known/openid-configuration", trust_env=False).json()
        access = Access(
            issuers=(Issuer(issuer=issuer, audiences=(CLIENT,), jwks=jwks["jwks_uri"]),)
        )
        port = upstream.port
        table = Table(
            targets=(
                target("acme/support", port),
                target("acme/support", port, "staging"),
                target("globex/support", port),
            ),
            groups={
                "acme-users": {"acme": ("production",)},
                "acme-mlops": {"acme": ("production", "staging")},
                "everyone": {"globex": ("production",)},
            },
            access=access,
        )
        with running(tmp_path, table) as made:
            user = id_token(issuer, "anna", {"groups": ["acme-users", "everyone"]})
            mlops = id_token(issuer, "bert", {"groups": ["acme-mlops"]})
            liar = id_token(issuer, "eve", {"tenant": "acme", "models": ["*"], "stages": ["*"]})
            _wait_for_keys(made, user)
            assert _ask(made, user, "acme/support") == (200, "acme/support@production")
            assert _ask(made, user, "globex/support") == (200, "globex/support@production")
            assert _ask(made, user, "acme/support:staging")[0] == 403
            assert _ask(made, mlops, "acme/support:staging") == (200, "acme/support@staging")
            assert _ask(made, mlops, "globex/support")[0] == 403
            assert _ask(made, liar, "acme/support")[0] == 403
            assert _names(made, user) == [
                "acme/support",
                "acme/support:production",
                "globex/support",
                "globex/support:production",
            ]
            assert _names(made, liar) == []
            with made.client() as client:
                body = {"model": "acme/support", "messages": []}
                assert client.post(CHAT, json=body).status_code == 200
            last = [line for line in made.lines() if line["e"] == "out" and line["status"] == 200]
            assert {(line["tenant"], line["caller"]) for line in last} >= {
                ("acme", "anna"),
                ("globex", "anna"),
                ("acme", "bert"),
            }


def _wait_for_keys(made: Running, token: str) -> None:
    # Envoy fetches the provider's keys in the background, and tells each of its threads.
    good, deadline = 0, time.monotonic() + 60
    while good < 5 and time.monotonic() < deadline:
        good = 0 if _ask(made, token, "acme/support")[0] == 401 else good + 1
        time.sleep(0.05)
    assert good == 5, "the provider's keys did not come"


def _ask(made: Running, token: str, model: str) -> tuple[int, str]:
    body = {"model": model, "messages": [{"role": "user", "content": "Who are you?"}]}
    headers = {"Authorization": f"Bearer {token}"}
    reply = httpx.post(f"{made.url}{CHAT}", json=body, headers=headers, trust_env=False)
    answer = reply.json()
    text = answer["choices"][0]["message"]["content"] if reply.status_code == 200 else reply.text
    return reply.status_code, text


def _names(made: Running, token: str) -> list[str]:
    headers = {"Authorization": f"Bearer {token}"}
    reply = httpx.get(f"{made.url}/v1/models", headers=headers, trust_env=False)
    return [each["id"] for each in reply.json()["data"]]


@pytest.fixture(scope="module")
def limited(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway with the limit service of a laptop; each test has a tenant of its own."""
    names = ("requests", "tokens", "callers", "others", "streams")
    limits = {
        "requests": {"limits": Limits(requests_per_minute=3)},
        "tokens": {"limits": Limits(tokens_per_month=30)},
        "callers": {"key_limits": Limits(requests_per_minute=2)},
        "others": {"key_limits": Limits(requests_per_minute=2)},
        "streams": {"limits": Limits(tokens_per_minute=20)},
    }
    tenants = {
        name: Tenant.model_validate(
            {
                "quota": {
                    "training": {"cpu": 1, "memory_gib": 1},
                    "inference": {"cpu": 8, "memory_gib": 64},
                },
                "storage": {"store": "s3://bucket"},
                **limits[name],
            }
        )
        for name in names
    }
    digest = "a" * 64
    release = Release(version=digest[:12], digest=digest, uri="s3://b/v", base="b")
    deployed = [Deployed(name, "support", "production", release) for name in names]
    port = free_port()
    table = Table(
        targets=tuple(target(f"{name}/support", upstream.port, limited=COUNTERS) for name in names),
        limits=tuple(configuration(tenants, deployed)["descriptors"]),
    )
    folder = tmp_path_factory.mktemp("limited")
    with running(folder, table, limits=f"127.0.0.1:{port}") as made:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "services.limits", "--port", str(port)),
                *("--config", str(made.places.folder / LIMITS)),
            ]
        )
        try:
            with made.client(tenant="requests") as client:
                for _ in range(100):
                    body = {"model": "requests/nothing", "messages": []}
                    client.post(CHAT, json=body)
                    if _listens(port):
                        break
                    time.sleep(0.1)
            time.sleep(1)
            yield made
        finally:
            process.terminate()
            process.wait(10)


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _chat(
    made: Running, tenant: str, sub: str = "anna", jti: str = "", **body: Any
) -> httpx.Response:
    """Ask with a token of its own, as an identity provider gives after each refresh."""
    with made.client(tenant=tenant, sub=sub, jti=jti or uuid.uuid4().hex) as client:
        return client.post(CHAT, json={"model": f"{tenant}/support", "messages": [], **body})


def _until_refused(made: Running, tenant: str, **body: Any) -> tuple[int, httpx.Response]:
    """How many were answered before the first 429, and that."""
    for count in range(20):
        reply = _chat(made, tenant, **body)
        if reply.status_code != 200:
            return count, reply
        # What is counted at an answer's end is counted a moment later.
        time.sleep(0.1)
    raise AssertionError("nothing was refused")


def test_requests_a_minute(limited: Running) -> None:
    first = _chat(limited, "requests")
    assert first.headers["x-ratelimit-limit-requests"] == "3"
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    count, refused = _until_refused(limited, "requests")
    # The minute may end in between.
    assert count in (2, 5)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(("tenant", "body"), [("tokens", {}), ("streams", {"stream": True})])
def test_tokens_of_prompts_and_answers(limited: Running, tenant: str, body: Any) -> None:
    """12 tokens each: what is admitted is answered whole, the next waits."""
    count, refused = _until_refused(limited, tenant, **body)
    assert count in ((3,) if tenant == "tokens" else (2, 3, 4))
    assert refused.status_code == 429
    assert "x-ratelimit-limit-tokens" in refused.headers


def test_each_caller_has_its_own(limited: Running) -> None:
    for caller in ("anna", "bert"):
        assert _chat(limited, "callers", caller).status_code == 200
    for _ in range(6):
        last = _chat(limited, "callers", "anna").status_code
    assert last == 429
    assert _chat(limited, "callers", "bert").status_code == 200
    assert _chat(limited, "others", "anna").status_code == 200, "another tenant's anna"


def test_a_token_without_a_subject_is_a_caller_by_itself(limited: Running) -> None:
    for _ in range(6):
        last = _chat(limited, "others", "", "one").status_code
    assert last == 429
    assert _chat(limited, "others", "", "two").status_code == 200
