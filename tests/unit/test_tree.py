"""The registry in git: what is read, what contradicts, what a change may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from kuznia.card_views import card_yaml
from kuznia.cards import build_card, load_rules
from kuznia.chart_values import gateway_values
from kuznia.contracts.catalogue import load_catalogue
from kuznia.errors import InputError
from kuznia.registry import mlflow_client
from kuznia.tree import load_tree
from kuznia.tree_checks import problems_of_change, problems_of_tree
from tests.fixtures import evidence
from tests.fixtures.checkouts import DIGEST, VERSION, checkout, commit, release, tenant, write

ACME = "argocd/registry/acme"
STAGING = "acme/support/staging.yaml"


def problems(root: Path) -> list[str]:
    return problems_of_tree(load_tree(root), load_catalogue())


def test_tenants_and_releases_are_read_by_their_place(tmp_path: Path) -> None:
    checkout(tmp_path, acme=tenant(), beta=tenant("beta"))
    write(tmp_path, {STAGING: release(), "acme/support/production.yaml": release(replicas=2)})
    tree = load_tree(tmp_path)
    assert list(tree.tenants) == ["acme", "beta"]
    assert [(each.name, each.release.replicas) for each in tree.of("acme")] == [
        ("acme-support-staging", 1),
        ("acme-support-production", 2),
    ]
    assert str(tree.releases[0].path) == f"{ACME}/support/staging.yaml"


def test_every_fault_of_every_file_is_named_at_once(tmp_path: Path) -> None:
    checkout(tmp_path, acme=tenant(state="asleep"))
    write(tmp_path, {STAGING: release(replicas=0), "acme/support/prod.yaml": {}})
    write(tmp_path, {"Beta/tenant.yaml": tenant(), "globex/notes.txt": {}})
    with pytest.raises(InputError) as caught:
        load_tree(tmp_path)
    assert caught.value.problems == [
        "argocd/registry/Beta: is no name of a tenant; use small letters, digits and -, 40 at most",
        f"{ACME}/tenant.yaml: state: 'asleep' is not one of 'active', 'hibernated' or 'retired'; "
        "choose one of them",
        f"{ACME}/support/prod.yaml: does not belong here; only production.yaml, staging.yaml may "
        "be here",
        f"{ACME}/support/staging.yaml: replicas: 0 is below 1; choose a value within the bound",
        "argocd/registry/globex/tenant.yaml: is missing; add it",
        "argocd/registry/globex/notes.txt: does not belong here; only tenant.yaml, a folder a "
        "model may be here",
    ]


def test_a_right_registry_has_no_problems(tmp_path: Path) -> None:
    checkout(tmp_path, acme=tenant(gpu_classes=["l4"]), beta=tenant("beta"))
    write(
        tmp_path, {STAGING: release(hardware="l4"), "beta/bot/staging.yaml": release("beta", "bot")}
    )
    assert problems(tmp_path) == []


LARGE = "a" * 64
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "reserved name": (
        {"default": tenant("default")},
        {},
        "argocd/registry/default/tenant.yaml: default is a name that Argo CD or the platform "
        "uses; choose another",
    ),
    "cluster": (
        {"acme": tenant(cluster="far")},
        {},
        f"{ACME}/tenant.yaml: cluster: 'far' is not in platform.yaml; choose one of in-cluster",
    ),
    "gpu class": (
        {"acme": tenant(gpu_classes=["l5"])},
        {},
        f"{ACME}/tenant.yaml: gpu_classes: 'l5' is not in the catalogue; choose one of l4, "
        "a100-40gb, a100-80gb, h100-80gb, h200-141gb",
    ),
    "claim": (
        {"acme": tenant(storage={"store": "file:///storage/store"})},
        {},
        f"{ACME}/tenant.yaml: storage.store: file:///storage/store needs a claim; set "
        "storage.claim_gib, or storage.existing_claim",
    ),
    "serving claim": (
        {"acme": tenant(storage={"store": "file:///storage/store", "claim_gib": 1})},
        {
            STAGING: release(
                uri=f"file:///storage/store/models/acme/support/{VERSION}",
            )
        },
        f"{ACME}/tenant.yaml: storage.serving_claim: is missing, so no release reaches the store "
        "on a volume; name a claim in the inference namespace",
    ),
    "hosts": (
        {"acme": tenant(hosts=["llm.example.org"]), "beta": tenant("b", hosts=["llm.example.org"])},
        {},
        "argocd/registry/beta/tenant.yaml: hosts: llm.example.org belongs to acme; choose another "
        "name",
    ),
    "store in a store": (
        {"acme": tenant(), "beta": tenant("acme/beta")},
        {},
        "argocd/registry/beta/tenant.yaml: storage.store: s3://kuznia/acme/beta/ lies in acme's "
        "s3://kuznia/acme/; give each tenant a prefix of its own",
    ),
    "same application": (
        {"a": tenant("a"), "a-b": tenant("a-b")},
        {"a/b-c/staging.yaml": release("a", "b-c"), "a-b/c/staging.yaml": release("a-b", "c")},
        "argocd/registry/a-b/c/staging.yaml: its Application a-b-c-staging is also that of "
        "argocd/registry/a/b-c/staging.yaml; rename one of the models",
    ),
    "foreign weights": (
        {},
        {STAGING: release("beta")},
        f"{ACME}/support/staging.yaml: uri: s3://kuznia/beta/models/beta/support/{VERSION} is not "
        "in the tenant's store s3://kuznia/acme/; serve from there",
    ),
    "closed hardware": (
        {"acme": tenant(gpu_classes=["l4"])},
        {STAGING: release(hardware="h100-80gb")},
        f"{ACME}/support/staging.yaml: hardware: 'h100-80gb' is not open to acme; choose one of "
        "cpu, l4",
    ),
    "base": (
        {},
        {STAGING: release(base="smollm2")},
        f"{ACME}/support/staging.yaml: base: 'smollm2' is not in the catalogue; did you mean "
        "smollm2-135m-instruct?",
    ),
    "context": (
        {},
        {STAGING: release(context_length=10_000)},
        f"{ACME}/support/staging.yaml: context_length: 10000 is above the 8192 of "
        "smollm2-135m-instruct; set that or less",
    ),
    "another base": (
        {},
        {
            STAGING: release(
                mode="adapter",
                lora_rank=8,
                base_uri="s3://kuznia/acme/bases/smollm2-135m-instruct/x",
                base_digest=LARGE,
            )
        },
        f"{ACME}/support/staging.yaml: base_digest: aaaaaaaaaaaa... is not the catalogue's "
        "4de4ff82db7d... of smollm2-135m-instruct; promote a version that was trained on it",
    ),
    "quota": (
        {
            "acme": tenant(
                quota={key: {"cpu": 8, "memory_gib": 256} for key in ("training", "inference")}
            )
        },
        {STAGING: release(replicas=2)},
        f"{ACME}/tenant.yaml: quota.inference.cpu: 8 is below the 12 that its 1 releases need with "
        "a rollout's; raise it or make them smaller",
    ),
    "production without a card": (
        {},
        {"acme/support/production.yaml": release()},
        f"{ACME}/support/production.yaml: card: is missing; `kuznia promote` brings it along",
    ),
    "no such card": (
        {},
        {STAGING: release(card="model-cards/acme/support/x.yaml")},
        f"{ACME}/support/staging.yaml: card: model-cards/acme/support/x.yaml is not here; `kuznia "
        "promote` brings it along",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_contradicts_is_named(case: str, tmp_path: Path) -> None:
    tenants, releases, expected = CASES[case]
    write(checkout(tmp_path, **tenants), releases)
    found = problems(tmp_path)
    assert expected in found
    extra = [line for line in found if line != expected]
    # Weights of another tenant also lie under another name.
    assert all("does not end in" in line for line in extra)


def card(tmp_path: Path, **changes: Any) -> str:
    """Write a card for what `evidence` describes; its path in the checkout."""
    path = "model-cards/acme/support/card.yaml"
    (tmp_path / path).parent.mkdir(parents=True)
    text = card_yaml(build_card(evidence.card_inputs(**changes), load_rules()))
    (tmp_path / path).write_text(text, "utf-8")
    return path


def test_a_card_that_blocks_or_is_anothers(tmp_path: Path) -> None:
    digest = evidence.card_inputs().export.folder.digest
    version = digest[:12]
    checkout(tmp_path)
    path = card(tmp_path, version=version)
    given = release(version=version, digest=digest, card=path)
    write(tmp_path, {"acme/support/production.yaml": given})
    assert problems(tmp_path) == []
    text = (tmp_path / path).read_text("utf-8")
    (tmp_path / path).write_text(text.replace("value: promote", "value: hold"), "utf-8")
    (only,) = problems(tmp_path)
    assert only.startswith(f"{ACME}/support/production.yaml: the card's verdict is hold (")
    write(tmp_path, {"acme/support/production.yaml": release(card=path)})
    assert f"{ACME}/support/production.yaml: card: {path} is of another version; promote again" in (
        problems(tmp_path)
    )


def change(tmp_path: Path, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is wrong with the change from one registry to another."""
    old = write(checkout(tmp_path / "old", acme=tenant(), beta=tenant("beta")), before)
    new = write(checkout(tmp_path / "new", acme=tenant(), beta=tenant("beta")), after)
    return problems_of_change(load_tree(old), load_tree(new))


def test_one_release_may_go_two_may_not(tmp_path: Path) -> None:
    two = {f"acme/{name}/staging.yaml": release("acme", name) for name in ("a", "b", "c")}
    one = {"acme/a/staging.yaml": two["acme/a/staging.yaml"]}
    assert change(tmp_path / "1", two, {**one, "acme/b/staging.yaml": release("acme", "b")}) == []
    assert change(tmp_path / "2", two, one) == [
        "argocd/registry: 2 releases are removed (acme-b-staging, acme-c-staging), 1 may be in one "
        "change; remove fewer, or raise removals in platform.yaml by a change of its own"
    ]


def test_a_rename_is_refused(tmp_path: Path) -> None:
    found = change(tmp_path, {STAGING: release()}, {"acme/help/staging.yaml": release()})
    assert found == [
        f"{ACME}/support/staging.yaml: is renamed to {ACME}/help/staging.yaml, which would end the "
        "one before the other answers; add the new name first and remove the old one in a later "
        "change"
    ]


def test_a_tenant_goes_only_after_it_was_retired(tmp_path: Path) -> None:
    for state, expected in (("active", 1), ("hibernated", 1), ("retired", 0)):
        old = checkout(tmp_path / state / "old", acme=tenant(state=state), beta=tenant("beta"))
        write(old, {f"acme/{name}/staging.yaml": release("acme", name) for name in ("a", "b")})
        new = checkout(tmp_path / state / "new", beta=tenant("beta"))
        found = problems_of_change(load_tree(old), load_tree(new))
        gone = [line for line in found if line.startswith(f"{ACME}/tenant.yaml: is gone")]
        assert len(gone) == expected, found
        assert (found == []) == (state == "retired")


def test_soft_words_wait_for_a_tenant_that_sleeps_and_name_a_release(tmp_path: Path) -> None:
    checkout(tmp_path, acme=tenant(), beta=tenant("beta", state="hibernated", guard="default"))
    beta = release("beta", "help")
    words = {"acme/support": {"title": "Help"}, "beta/help": {"deny_words": ["secret"]}}
    write(tmp_path, {STAGING: release(), "beta/help/staging.yaml": beta})
    write(tmp_path, {"soft.yaml": {"models": words}})
    before = problems(tmp_path)
    made = "".join(gateway_values(load_tree(tmp_path))["tables"].values())
    assert '"title":"Help"' in made and "secret" not in made
    write(tmp_path, {"soft.yaml": {"models": words | {"beta/hlep": {}}}})
    fault = (
        "argocd/registry/soft.yaml: models.beta/hlep: no release has this name; correct it or "
        "remove it"
    )
    assert problems(tmp_path) == [*before, fault]
    with pytest.raises(InputError, match=r"models\.beta/hlep"):
        gateway_values(load_tree(tmp_path))


def test_high_risk_in_production_needs_two_people(tmp_path: Path) -> None:
    digest = evidence.card_inputs().export.folder.digest
    version = digest[:12]
    checkout(tmp_path)
    commit(tmp_path)
    path = card(tmp_path, version=version, card=evidence.card_spec(risk="high"))
    given = release(version=version, digest=digest, card=path)
    write(tmp_path, {"acme/support/production.yaml": given})
    asked = ("--root", str(tmp_path), "--against", "main")
    code, words = run(*asked, "--approved-by", "@jo", "--approved-by", "@jo")
    assert code == 2
    assert (
        f"{ACME}/support/production.yaml: its risk is high, which two people must approve, and "
        "@jo did; ask another reviewer"
    ) in words
    assert run(*asked, "--approved-by", "@jo", "--approved-by", "@kim")[0] == 0
    write(tmp_path, {"acme/tenant.yaml": tenant(two_people_for=[])})
    assert run(*asked, "--approved-by", "@jo")[0] == 0


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["check", *arguments])
    return done.exit_code, done.output


def test_check_reads_the_registry_where_there_is_one(tmp_path: Path) -> None:
    checkout(tmp_path)
    code, words = run("--root", str(tmp_path))
    assert code == 0
    assert "argocd/registry: ok" in words
    (tmp_path / "empty").mkdir()
    code, words = run("--root", str(tmp_path / "empty"), "--against", "main")
    assert code == 2
    assert "is not here; name the checkout with --root" in words


def test_check_against_a_revision(tmp_path: Path) -> None:
    checkout(tmp_path)
    write(tmp_path, {f"acme/{name}/staging.yaml": release("acme", name) for name in ("a", "b")})
    commit(tmp_path)
    write(tmp_path, {"acme/a/staging.yaml": None, "acme/b/staging.yaml": None})
    code, words = run("--root", str(tmp_path), "--against", "main")
    assert code == 2
    assert "2 releases are removed (acme-a-staging, acme-b-staging)" in words
    code, words = run("--root", str(tmp_path), "--against", "nowhere")
    assert code == 2
    assert "nowhere: git cannot read it" in words


def test_a_change_may_mend_what_is_wrong_in_git(tmp_path: Path) -> None:
    checkout(tmp_path, acme=tenant(state="asleep"))
    commit(tmp_path)
    checkout(tmp_path, acme=tenant())
    assert run("--root", str(tmp_path), "--against", "main")[0] == 0


def test_check_asks_mlflow_for_what_changed(
    tmp_path: Path, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    client = mlflow_client(mlflow_database)
    client.create_registered_model("acme.support")
    tags = {"version": VERSION, "digest.sha256": DIGEST}
    client.create_model_version("acme.support", release()["uri"], tags=tags)
    checkout(tmp_path)
    write(tmp_path, {"acme/old/staging.yaml": release("acme", "old")})
    commit(tmp_path)
    write(tmp_path, {STAGING: release()})
    against = ("--root", str(tmp_path), "--against", "main", "--mlflow")
    assert run(*against) == (0, run("--root", str(tmp_path))[1])
    write(tmp_path, {STAGING: release(digest=VERSION + "f" * 52)})
    assert (
        f"{ACME}/support/staging.yaml: digest: {VERSION}... is not the registered"
        in run(*against)[1]
    )
    write(tmp_path, {STAGING: release(version="aaaaaaaaaaaa")})
    code, words = run(*against)
    assert code == 2
    assert "version: aaaaaaaaaaaa of acme.support is not registered" in words
    assert "acme/old" not in words
