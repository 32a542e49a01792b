"""API keys: what a token says, who signs it, how it is taken back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jwt
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.main import main
from kuznia import keys, signing
from kuznia.errors import DependencyError, InputError
from kuznia.keys.ledger import SKEW
from kuznia.registry import mlflow_client
from kuznia.store import Store, open_store
from tests.fixtures.checkouts import checkout, release, tenant, write
from workflows.environments import ROOT

DAY = 86_400


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def kuznia(*words: str) -> Result:
    return CliRunner().invoke(main, ["keys", *words])


def verified(token: str, folder: Path | None = None) -> dict[str, Any]:
    """The claims, checked as a gateway does: by the set alone."""
    keyset = {key.key_id: key for key in jwt.PyJWKSet.from_dict(keys.jwks(folder)).keys}
    kid = jwt.get_unverified_header(token)["kid"]
    claims: dict[str, Any] = jwt.decode(
        token, keyset[kid], algorithms=["ES256"], issuer="kuznia", audience="kuznia-gateway"
    )
    return claims


def files_below(*folders: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


# what a token says


def test_a_token_says_who_may_ask_what_until_when(store: Store) -> None:
    key, token = keys.issue(store, "acme", name="shop", models=["support", "acme/faq"])
    claims = verified(token)
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "kid": key.kid, "typ": "JWT"}
    assert abs(claims["iat"] - time.time()) < 60
    assert claims == {
        "iss": "kuznia",
        "aud": "kuznia-gateway",
        "sub": "shop",
        "jti": key.jti,
        "tenant": "acme",
        "models": ["acme/support", "acme/faq"],
        "risks": ["minimal", "limited"],
        "stages": ["production"],
        "iat": claims["iat"],
        "nbf": claims["iat"],
        "exp": claims["iat"] + 90 * DAY,
    }


def test_a_token_is_kept_nowhere(store: Store, tmp_path: Path) -> None:
    _, token = keys.issue(store, "acme")
    signature = token.rpartition(".")[2].encode()
    found = files_below(tmp_path)
    assert found and not [name for name, value in found.items() if signature in value]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(["acme", "beta", "a", "Acme", "", "acme/x", "../beta", "acme\n"]),
    st.lists(
        st.sampled_from(
            ["*", "support", "acme/support", "beta/support", "acme/", "/x", "acme/a/b"]
        ),
        max_size=3,
    ),
)
def test_no_key_names_what_is_another_tenants(tenant: str, models: list[str]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        keys.rotate(folder)
        try:
            key, token = keys.issue(open_store(name), tenant, models=models, folder=folder)
        except InputError:
            assert keys.ledger(open_store(name)) == []
            return
        claims = verified(token, folder)
    assert claims["tenant"] == key.tenant == tenant in ("acme", "beta", "a")
    assert claims["models"]
    assert all(each == "*" or each.split("/")[:-1] == [tenant] for each in claims["models"])


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    done = kuznia(
        *("create", "--tenant", "Acme", "--name", "a b", "--models", "beta/x", "--risks", "none"),
        *("--stages", ",", "--expires", "366d"),
    )
    assert (done.exit_code, done.stdout) == (2, "")
    places = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert places == ["--tenant", "--name", "--models", "--risks", "--stages", "--expires"]
    assert files_below(tmp_path / "home") == {}


@pytest.mark.parametrize("expires", ["0d", "400d", "9000h", "999999d", "soon", "1.5d", "-1d", ""])
def test_a_key_has_an_end_within_a_year(expires: str) -> None:
    done = kuznia("create", "--tenant", "acme", "--expires", expires)
    assert done.exit_code == 2 and done.stderr.startswith("error: --expires: ")
    assert kuznia("create", "--tenant", "acme", "--expires", "365d").exit_code == 0


# who signs


def test_a_laptop_makes_its_key_once_and_for_its_owner_alone(store: Store, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: keys.issue(store, "acme"), range(8)))
    assert len({key.kid for key, _ in made}) == 1
    path = tmp_path / "home/keys/issuer/signing.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [verified(token)["jti"] for _, token in made] == [key.jti for key, _ in made]


def test_a_named_folder_and_a_pod_get_no_key_unasked(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("KUZNIA_POD_CPU", "1")
        with pytest.raises(InputError, match="make a first key there with `kuznia keys rotate`"):
            keys.issue(store, "acme")
    monkeypatch.setenv("KUZNIA_KEYS", str(tmp_path / "issuer"))
    with pytest.raises(InputError, match=r"issuer/signing\.pem: is missing; correct KUZNIA_KEYS"):
        keys.issue(store, "acme")
    assert keys.jwks() == {"keys": []} and keys.ledger(store) == []
    assert kuznia("rotate").exit_code == 0
    assert verified(keys.issue(store, "acme")[1])["tenant"] == "acme"


def test_what_is_no_key_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUZNIA_KEYS", str(tmp_path))
    (tmp_path / "old.pub").write_text("no key")
    done = kuznia("jwks")
    assert done.exit_code == 2 and "old.pub: is not a public ECDSA P-256 key" in done.stderr
    (tmp_path / "old.pub").unlink()
    (tmp_path / "signing.pem").write_text("no key")
    done = kuznia("create", "--tenant", "acme")
    assert done.exit_code == 2 and "signing.pem: is not a private ECDSA P-256 key" in done.stderr


def test_a_folder_without_room_is_a_dependency_that_failed(tmp_path: Path) -> None:
    (tmp_path / "issuer").write_text("a file")
    with pytest.raises(DependencyError, match="or name another folder in KUZNIA_KEYS"):
        keys.rotate(tmp_path / "issuer")


# rotation


def test_a_rotation_breaks_no_token_and_is_known_before_it_comes(store: Store) -> None:
    first = keys.issue(store, "acme")
    prepared = kuznia("rotate", "--prepare").stdout.split(":")[0]
    known = [key["kid"] for key in keys.jwks()["keys"]]
    assert sorted([first[0].kid, prepared]) == known
    between = keys.issue(store, "acme")
    assert between[0].kid == first[0].kid
    assert kuznia("rotate").stdout.startswith(f"{prepared}: signs from now on\n{first[0].kid}: ")
    second = keys.issue(store, "acme")
    assert second[0].kid == prepared
    assert {verified(token)["jti"] for _, token in (first, between, second)} == {
        key.jti for key in keys.ledger(store)
    }
    assert [key["kid"] for key in keys.jwks()["keys"]] == known


def test_the_set_and_what_is_printed_hold_no_private_part(store: Store) -> None:
    keys.issue(store, "acme")
    keys.prepare()
    assert all(
        key.keys() == {"kty", "crv", "x", "y", "kid", "alg", "use"} for key in keys.jwks()["keys"]
    )
    said = kuznia("public").stdout
    assert "PRIVATE" not in said
    pems = [
        part + "-----END PUBLIC KEY-----\n" for part in said.split("-----END PUBLIC KEY-----\n")
    ]
    again = keys.jwks_of(keys.public_key("access.keys", pem.encode()) for pem in pems[:-1])
    assert again == keys.jwks() == json.loads(kuznia("jwks").stdout)


def test_an_old_key_goes_when_its_last_token_has_ended(store: Store) -> None:
    old, _ = keys.issue(store, "acme", lifetime=timedelta(days=2))
    keys.issue(store, "acme", lifetime=timedelta(days=1))
    new, _ = keys.rotate()
    assert keys.prune(store, now=time.time() + 2 * DAY) == []
    assert keys.prune(store, now=time.time() + 2 * DAY + SKEW + 60) == [old.kid]
    assert [key["kid"] for key in keys.jwks()["keys"]] == [new]


def test_an_old_key_of_another_ledger_stays_for_a_year(store: Store, tmp_path: Path) -> None:
    old, token = keys.issue(open_store(str(tmp_path / "another")), "acme")
    keys.rotate()
    assert keys.prune(store, now=time.time() + 364 * DAY) == []
    assert verified(token)["jti"] == old.jti
    assert keys.prune(store, now=time.time() + 366 * DAY) == [old.kid]


def test_after_a_leak_nothing_of_the_old_key_is_good(store: Store) -> None:
    leaked, token = keys.issue(store, "acme")
    prepared = keys.prepare()
    done = kuznia("rotate", "--leaked", "--store", store.uri)
    assert done.stdout.endswith("dropped, and 1 keys that it signed revoked; make new ones\n")
    with pytest.raises(KeyError):
        verified(token)
    assert list(keys.revoked(store)) == [leaked.jti]
    (now,) = keys.public_keys()
    assert now not in (leaked.kid, prepared)


def test_two_who_rotate_at_once_lose_no_token(store: Store) -> None:
    tokens = [keys.issue(store, "acme")[1]]

    def rotate_and_issue(_: int) -> str | None:
        try:
            keys.rotate()
        except DependencyError as error:
            assert "somebody else has changed the key just now" in str(error)
        return keys.issue(store, "acme")[1]

    with ThreadPoolExecutor(2) as pool:
        tokens += [token for token in pool.map(rotate_and_issue, range(2)) if token]
    assert len({verified(token)["jti"] for token in tokens}) == 3


def test_one_way_to_rotate_at_a_time() -> None:
    done = kuznia("rotate", "--prune", "--leaked")
    assert done.exit_code == 2 and "each is a way of its own" in done.stderr


# taking back


def test_revoking_tells_the_gateway_by_one_listing(store: Store) -> None:
    made = [keys.issue(store, "acme", name=f"caller-{n}")[0] for n in range(3)]
    done = kuznia("revoke", made[0].jti, "0" * 16, "../x", made[2].jti, "--store", store.uri)
    assert done.exit_code == 2
    assert done.stdout.splitlines() == [f"{made[0].jti}: revoked", f"{made[2].jti}: revoked"]
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == ["0" * 16, "../x"]
    until = int(made[0].expires.timestamp()) + SKEW
    assert keys.revoked(store) == dict.fromkeys(sorted((made[0].jti, made[2].jti)), until)
    assert keys.revoked(store, now=until) == {}
    again = kuznia("revoke", made[0].jti, "--store", store.uri)
    assert (again.exit_code, again.stdout) == (0, f"{made[0].jti}: was revoked before\n")


def test_who_revoke_at_once_lose_nothing(store: Store) -> None:
    made = [keys.issue(store, "acme")[0].jti for _ in range(6)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda jti: keys.revoke(store, jti), made * 3))
    assert sum(done) == len(made)
    assert list(keys.revoked(store)) == sorted(made)


def test_a_bucket_does_as_a_folder_does(s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    key, _ = keys.issue(store, "acme")
    assert keys.revoked(store) == {}
    assert [keys.revoke(store, key.jti, by="me") for _ in range(2)] == [True, False]
    assert list(keys.revoked(store)) == [key.jti]
    assert keys.ledger(store) == [key]


# the command


def listed(*words: str) -> Sequence[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(kuznia("list", "--json", *words).stdout)
    return found


def test_create_prints_the_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    done = kuznia("create", "--tenant", "acme", "--name", "shop")
    assert done.stdout.count("\n") == 1
    claims = verified(done.stdout.strip())
    assert claims["jti"] in done.stderr and "shown this once" in done.stderr
    as_json = json.loads(kuznia("create", "--tenant", "beta", "--json").stdout)
    assert verified(as_json["token"])["sub"] == as_json["name"] == f"key-{as_json['jti'][:8]}"
    kuznia("revoke", claims["jti"])
    assert [(row["name"], row["revoked"]) for row in listed("--tenant", "acme")] == [("shop", True)]
    assert {row["tenant"] for row in listed()} == {"acme", "beta"}
    assert not any("token" in row for row in listed())
    table = kuznia("list").stdout
    assert [line.split()[-1] for line in table.splitlines()] in (
        ["state", "revoked", "ok"],
        ["state", "ok", "revoked"],
    )


def test_a_name_that_no_checkout_knows_is_noted(tmp_path: Path) -> None:
    checkout(tmp_path, acme=tenant())
    write(tmp_path, {"acme/support/staging.yaml": release()})
    root = ("--root", str(tmp_path))
    assert "note:" not in kuznia("create", "--tenant", "acme", *root).stderr
    assert "note:" not in kuznia("create", "--tenant", "acme", "--models", "support", *root).stderr
    done = kuznia("create", "--tenant", "acme", "--models", "support,faq", *root)
    assert (done.exit_code, done.stderr.splitlines()[0]) == (
        0,
        "note: argocd/registry has no model acme/faq; the key cannot ask it until it has",
    )
    done = kuznia("create", "--tenant", "beta", *root)
    assert done.stderr.startswith("note: argocd/registry has no tenant beta; ")


def test_without_a_checkout_the_local_registry_is_asked(
    tmp_path: Path, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow_client(mlflow_database).create_registered_model("acme.support")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    root = ("--root", str(tmp_path))
    assert "note:" not in kuznia("create", "--tenant", "acme", "--models", "support", *root).stderr
    done = kuznia("create", "--tenant", "acme", "--models", "faq", *root)
    assert done.stderr.startswith("note: MLflow at sqlite:///")
    assert "has no model acme/faq" in done.stderr


def test_public_keys_are_what_openssl_reads(tmp_path: Path, store: Store) -> None:
    key, _ = keys.issue(store, "acme")
    path = tmp_path / "public"
    path.mkdir()
    (path / "issuer.pem").write_text(kuznia("public").stdout)
    assert [signing.fingerprint(each) for each in signing.public_keys(path)] == [key.kid]


def test_the_pages_commands_work() -> None:
    page = (ROOT / "docs/howto/give-out-keys.md").read_text("utf-8")
    key, _ = keys.issue(open_store(str(keys.home().parents[1] / "store")), "acme")
    commands = re.findall(r"^\$ kuznia keys (.*)$", page, re.M)
    assert len(commands) == 7
    for command in commands:
        done = kuznia(*command.replace("0123456789abcdef", key.jti).split())
        assert done.exit_code == 0, f"{command}: {done.output}"
