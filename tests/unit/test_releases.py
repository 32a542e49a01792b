"""Editing a release's file: only the version lines move, and YAML reads what was meant."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kuznia.contracts.release import VERSION_LINES
from kuznia.errors import InputError
from kuznia.registry import ModelVersion
from kuznia.releases import lines_of, objections, read_release, version_lines, write_release

DIGEST = "0a1b2c3d4e5f" + "6" * 52
OTHER = "12e456789012" + "7" * 52
PLACE = "production.yaml"


def merged(digest: str = DIGEST, **more: Any) -> dict[str, Any]:
    lines = {
        "version": digest[:12],
        "digest": digest,
        "uri": f"s3://bucket/models/acme/support/{digest[:12]}",
        "base": "smollm2-135m-instruct",
        "mode": "merged",
    }
    return lines | more


def adapter(digest: str = OTHER) -> dict[str, Any]:
    more = {"mode": "adapter", "base_uri": "s3://bucket/bases/b", "base_digest": "9" * 64}
    return merged(digest, **more, lora_rank=8)


OLD = f"""\
# Ours; ask the support team.
hardware: cpu   # no GPU yet

version: '{DIGEST[:12]}'   # the one from Tuesday
replicas: 2
digest: "{DIGEST}"
uri: s3://bucket/models/acme/support/{DIGEST[:12]}
base: smollm2-135m-instruct
arguments:
  - --version=1   # not ours
  # digest: none
mode: merged  # or adapter
"""


def test_a_new_file_has_the_version_lines_alone() -> None:
    text = write_release(None, merged(), PLACE)
    assert yaml.safe_load(text) == merged()
    assert [line.split(":")[0] for line in text.splitlines()] == list(merged())
    assert version_lines(read_release(text, PLACE)) == merged()


def test_the_same_lines_leave_every_byte() -> None:
    assert write_release(OLD, merged(), PLACE) == OLD


def test_other_lines_comments_and_order_stay() -> None:
    new = write_release(OLD, adapter(), PLACE)
    assert (
        new
        == f"""\
# Ours; ask the support team.
hardware: cpu   # no GPU yet

version: "{OTHER[:12]}"   # the one from Tuesday
replicas: 2
digest: "{OTHER}"
uri: s3://bucket/models/acme/support/{OTHER[:12]}
base: smollm2-135m-instruct
arguments:
  - --version=1   # not ours
  # digest: none
mode: adapter  # or adapter
base_uri: s3://bucket/bases/b
base_digest: "{"9" * 64}"
lora_rank: 8
"""
    )
    back = write_release(new, merged(), PLACE)
    assert yaml.safe_load(back) == yaml.safe_load(OLD)
    assert back.splitlines()[-1] == "mode: merged  # or adapter"


@pytest.mark.parametrize(
    "digest",
    ["123456789012" + "3" * 52, OTHER, "0o1234567890" + "a" * 52, "e12345678901" + "b" * 52],
)
def test_no_reader_takes_a_version_for_a_number(digest: str) -> None:
    """YAML 1.2, which Helm reads, knows 12e456789012 as a float; 1.1 knows octals."""
    if "o" in digest:
        digest = digest.replace("o", "0")
    text = write_release(None, merged(digest), PLACE)
    assert f'version: "{digest[:12]}"' in text or digest[0].isalpha()
    assert yaml.safe_load(text)["digest"] == digest


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (OLD.replace("\n", "\r\n"), "\r\n"),
        (OLD.rstrip("\n"), "mode: adapter  # or adapter\n"),
        (
            OLD.replace("smollm2-135m-instruct", '"smollm2-135m-instruct"'),
            '"smollm2-135m-instruct"',
        ),
        ("# nothing yet\n", "# nothing yet\nversion:"),
        ("replicas: 2\n", f'version: "{OTHER[:12]}"\ndigest:'),
        (OLD.replace(f"version: '{DIGEST[:12]}'", "version:"), f'version: "{OTHER[:12]}"   #'),
        ("---\n" + OLD, "---\n# Ours"),
    ],
)
def test_files_of_other_habits(text: str, same: str) -> None:
    new = write_release(text, adapter(), PLACE)
    assert same in new
    assert ("\r" in new) == ("\r" in text) and new.count("\r") in (0, new.count("\n"))
    kept = {k: v for k, v in (yaml.safe_load(text) or {}).items() if k not in VERSION_LINES}
    assert yaml.safe_load(new) == kept | adapter()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{version: a}", "is not a mapping with one key a line"),
        ("- version", "is not a mapping with one key a line"),
        ("version: a\nversion: b\n", "version: is there twice; remove one"),
        ("version: >-\n  a\n", "version: is not one plain value on its line"),
        ("version: [a]\n", "version: is not one plain value on its line"),
        ("version: &v a\nhardware: *v\n", "version: is not one plain value on its line"),
        ("version: a\n  b: c", "line 2: not YAML"),
        ("version: a\nreplicas: 0\n", "replicas: 0 is below 1"),
    ],
)
def test_what_cannot_be_edited_is_refused(text: str, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        write_release(text, merged(), PLACE)
    assert str(caught.value).startswith(PLACE) and fault in str(caught.value)


def registered(**tags: str) -> ModelVersion:
    given = {
        "version": DIGEST[:12],
        "digest.sha256": DIGEST,
        "mode": "merged",
        "base_model": "smollm2-135m-instruct",
        "base_key": "bases/b",
        "base_digest": "9" * 64,
        "eval.verdict": "promote",
        "verify.passed": "true",
    } | {key.replace("__", "."): value for key, value in tags.items()}
    uri = f"s3://bucket/store/models/acme/support/{DIGEST[:12]}"
    return ModelVersion("acme.support", 3, uri, None, (), given, 0)


def test_the_lines_of_a_registered_version() -> None:
    card = f"model-cards/acme/support/{DIGEST[:12]}.yaml"
    uri = f"s3://bucket/store/models/acme/support/{DIGEST[:12]}"
    assert lines_of(registered()) == merged(uri=uri, card=card)
    answers = {"answers_key": "runs/a/verify/answers.json", "answers_sha256": "8" * 64}
    assert lines_of(registered(mode="adapter", lora_rank="16", **answers)) == {
        **merged(uri=uri, mode="adapter"),
        "base_uri": "s3://bucket/store/bases/b",
        "base_digest": "9" * 64,
        "lora_rank": 16,
        "answers_uri": "s3://bucket/store/runs/a/verify/answers.json",
        "answers_sha256": "8" * 64,
        "card": card,
    }


@pytest.mark.parametrize(
    ("tags", "fault"),
    [
        ({"mode": "adapter"}, "mode adapter needs base_uri, base_digest, lora_rank"),
        ({"mode": "other"}, "mode: 'other' is not one of"),
        ({"version": "000000000000"}, "is not how digest"),
        ({"answers_key": "runs/a"}, "answers_uri and answers_sha256 go together"),
    ],
)
def test_a_version_that_makes_no_release_says_why(tags: dict[str, str], fault: str) -> None:
    with pytest.raises(InputError) as caught:
        lines_of(registered(**tags))
    assert str(caught.value).startswith("MLflow's acme.support version 3: ")
    assert fault in str(caught.value)


def test_all_objections_at_once() -> None:
    assert objections(registered()) == []
    bad = registered(eval__verdict="hold", verify__passed="false", digest__sha256="")
    assert [line.split(",")[0] for line in objections(bad)] == [
        "it has no tag digest.sha256",
        "its verdict is hold",
        "its tag verify.passed is not true",
    ]
