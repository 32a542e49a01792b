"""kuznia promote, rollback and releases in a real checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cli.main import main
from kuznia.registry import Registry
from kuznia.tree import load_tree
from tests.fixtures.released import add_version, digest_of, git, make_remote, save, version_of

PRODUCTION = "argocd/registry/acme/support/production.yaml"
STAGING = "argocd/registry/acme/support/staging.yaml"


def kuznia(*words: str) -> Result:
    return CliRunner().invoke(main, [*words])


def done(*words: str) -> str:
    result = kuznia(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def here(
    tmp_path: Path, s3_bucket: str, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A checkout with acme/support version `one` staged; MLflow also has `two` and `held`."""
    store = f"{s3_bucket}/store"
    _, checkout = make_remote(tmp_path, store, "acme")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    monkeypatch.chdir(checkout)
    registry = Registry(mlflow_database)
    for seed, verdict in (("one", "promote"), ("two", "promote"), ("held", "hold")):
        add_version(registry, store, "acme.support", seed, eval__verdict=verdict)
    done("promote", "acme/support@1", "--to", "staging")
    land(checkout)
    return checkout


def land(here: Path) -> None:
    """What a merge does: the branch is in main."""
    branch = git(here, "branch", "--show-current")
    git(here, "switch", "-q", "main")
    git(here, "merge", "-q", "--no-ff", "--message", f"Merge {branch}", branch)
    git(here, "push", "-q")
    git(here, "branch", "-q", "-d", branch)


def read(path: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Path(path).read_text("utf-8"))
    return found


def test_a_registered_version_is_staged_with_its_card(here: Path) -> None:
    assert read(STAGING)["version"] == version_of("one")
    card = read(STAGING)["card"]
    assert read(card)["identity"]["manifest_sha256"]["value"] == digest_of("one")
    assert (here / card).with_suffix(".md").exists()
    assert load_tree(here).releases[0].release.digest == digest_of("one")


def test_promote_copies_the_version_lines_on_a_branch(here: Path) -> None:
    said = done("promote", "acme/support")
    branch = f"promote/acme/support/{version_of('one')}"
    assert git(here, "branch", "--show-current") == branch
    assert said.splitlines()[0] == f"acme/support production: nothing -> {version_of('one')}"
    assert f"git push --set-upstream origin {branch}, then a pull request into main" in said
    assert read(PRODUCTION) == read(STAGING)
    assert git(here, "show", "--format=%(trailers:only,unfold)", "--name-only").split("\n") == [
        "Tenant: acme",
        "Model: support",
        "Release: production",
        f"Version: {version_of('one')}",
        f"Digest: {digest_of('one')}",
        "Actor: Ada <ada@example.org>",
        "",
        "",
        PRODUCTION,
    ]
    land(here)
    assert "serves" in done("promote", "acme/support") and git(here, "status", "-s") == ""


def test_only_what_promote_writes_is_committed(here: Path) -> None:
    (here / "notes").write_text("mine")
    (here / STAGING).write_text((here / STAGING).read_text() + "# mine too\n")
    git(here, "add", "--all")
    done("promote", "acme/support")
    assert git(here, "show", "--format=", "--name-only") == PRODUCTION
    assert git(here, "status", "--short").split() == ["M", STAGING, "A", "notes"]


def test_rollback_brings_back_the_version_and_nothing_else(here: Path) -> None:
    done("promote", "acme/support")
    land(here)
    done("promote", "acme/support@2")
    land(here)
    path = here / PRODUCTION
    path.write_text(path.read_text() + "replicas: 3\n")
    save(here, "Three replicas")
    said = done("rollback", "acme/support")
    first = f"acme/support production: {version_of('two')} -> {version_of('one')}"
    assert said.splitlines()[0] == first
    assert read(PRODUCTION) == read(STAGING) | {"replicas": 3}
    assert f"This reverts commit {git(here, 'rev-parse', 'main~1')}." in git(
        here, "log", "-1", "--format=%B"
    )
    assert (here / f"model-cards/acme/support/{version_of('two')}.yaml").exists()
    land(here)
    again = json.loads(done("rollback", "acme/support", "--to", version_of("two")[:5], "--json"))
    assert (again["was"], again["version"]) == (version_of("one"), version_of("two"))


def test_releases_lists_since_when_and_the_verdict(here: Path) -> None:
    done("promote", "acme/support")
    land(here)
    stamp = git(here, "log", "-1", "--format=%cI", "--", PRODUCTION)
    header, *rows = done("releases").splitlines()
    assert header.split() == ["tenant", "model", "release", "version", "since", "verdict"]
    wanted = ["acme", "support", "production", version_of("one"), stamp[:19], "promote"]
    assert wanted in [row.split() for row in rows] and len(rows) == 2
    listed = json.loads(done("releases", "acme/support", "--json"))
    assert [row["release"] for row in listed] == ["staging", "production"]
    assert listed[1]["since"] >= stamp


def test_no_commit_only_edits(here: Path) -> None:
    said = done("promote", "acme/support", "--no-commit")
    assert "git diff" in said
    assert git(here, "status", "--short") == f"?? {PRODUCTION}"
    assert git(here, "branch", "--show-current") == "main"


def test_a_pull_request_on_git_alone_is_a_branch_with_a_review_file(here: Path) -> None:
    done("promote", "acme/support", "--pull-request")
    branch = f"promote/acme/support/{version_of('one')}"
    review = git(here, "show", f"origin/{branch}:reviews/acme-support.md")
    assert review.startswith(f"# Release acme/support {version_of('one')} to production")


REFUSED = [
    (("promote", "support"), "support: names no model of a tenant; write it as tenant/model"),
    (("promote", "acme/sales"), "staging.yaml: is not here; choose one of acme/support"),
    (("promote", "acme/support", "--to", "staging"), "is in staging already; name a version"),
    (("promote", "acme/support@held"), "acme.support has no version 'held'; choose one of"),
    (("promote", "acme/support@3"), "its verdict is hold, not promote"),
    (("promote", "acme/support@2", "--from", "staging"), "leave --from staging out"),
    (("promote", "acme/support", "--no-commit", "--pull-request"), "--no-commit: makes no"),
    (("promote", "acme/support", "--branch", "main"), "main: exists already; remove it by"),
    (("promote", "acme/support", "--root", "/"), "/: is in no git checkout; name one"),
    (("rollback", "acme/support"), "production.yaml: is not here; no model is in production"),
    (("rollback", "acme/support", "--release", "staging"), "served no other version"),
    (
        ("rollback", "acme/support", "--release", "staging", "--to", "ff"),
        f"never served ff; it served {version_of('one')}",
    ),
    (("releases", "globex"), "globex: has no release here; there are: acme/support"),
]


def test_refusals_are_one_line(here: Path) -> None:
    before = git(here, "for-each-ref"), git(here, "status", "--short")
    for words, fault in REFUSED:
        result = kuznia(*words)
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ") and fault in line
        assert (git(here, "for-each-ref"), git(here, "status", "--short")) == before, words


def test_changes_that_are_not_committed_are_not_swept_in(here: Path) -> None:
    (here / PRODUCTION).write_text((here / STAGING).read_text() + "replicas: 9\n")
    done_before = git(here, "rev-parse", "HEAD")
    result = kuznia("promote", "acme/support@2")
    assert result.exit_code == 2
    assert f"{PRODUCTION}: has changes that are not committed" in result.stderr
    assert git(here, "rev-parse", "HEAD") == done_before
    assert git(here, "branch", "--show-current") == "main"


def test_without_a_card_nothing_goes_into_production(here: Path, s3_bucket: str) -> None:
    store = f"{s3_bucket}/store"
    registry = Registry(f"sqlite:///{here.parent / 'mlflow.db'}")
    add_version(registry, store, "acme.support", "bare", card=False)
    result = kuznia("promote", "acme/support@4")
    assert result.exit_code == 2
    assert "card.yaml: is not written yet; run the chain to its end" in result.stderr
