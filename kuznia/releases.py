"""What a release is changed to, and how its file is edited: only the version lines move.

A file keeps every other line, comment and the order to the byte. Nothing here needs git.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kuznia.card_views import read_card
from kuznia.cards import card_key
from kuznia.contracts.base import FAST, load_yaml, parse
from kuznia.contracts.release import VERSION_LINES, Release, Stage
from kuznia.errors import InputError
from kuznia.git import message
from kuznia.registry import ModelVersion
from kuznia.store import folder_of, open_store, root_and_key

CARDS = Path("model-cards")
Lines = dict[str, Any]
"""Version lines in the order of VERSION_LINES; what is absent has its default."""
PLAIN = re.compile(r"[A-Za-z][\w./:@+-]*")


def read_release(text: str, place: str) -> Release:
    """The release that a file holds; InputError with every fault."""
    release: Release = parse(Release, load_yaml(text, place), place)
    return release


def version_lines(release: Release) -> Lines:
    """The version lines of a release; keys that have their default are left out, save `mode`."""
    values = release.model_dump(mode="json", include=set(VERSION_LINES))
    return {key: values[key] for key in VERSION_LINES if values[key] is not None}


def lines_in(text: str | None, place: str) -> Lines | None:
    """The version lines in a file's text; None where there is no file, or no valid release."""
    try:
        return None if text is None else version_lines(read_release(text, place))
    except InputError:
        return None


def objections(version: ModelVersion) -> list[str]:
    """Why a version must not be released; empty if it may."""
    found = []
    if not version.digest:
        found.append("it has no tag digest.sha256, so nothing says which weights it means")
    if (verdict := version.tags.get("eval.verdict")) != "promote":
        found.append(f"its verdict is {verdict or 'not known'}, not promote")
    if version.tags.get("verify.passed") != "true":
        found.append("its tag verify.passed is not true")
    return found


def card_path(tenant: str, model: str, version: str) -> Path:
    """The card of a version in the repository; the README is beside it as .md."""
    return CARDS / tenant / model / f"{version}.yaml"


def lines_of(version: ModelVersion) -> Lines:
    """The version lines for a registered version, its card included.

    Raises InputError if what MLflow says of the version makes no release.
    """
    tags, (root, _) = version.tags, root_and_key(version.uri)
    adapter = tags.get("mode") == "adapter"
    rank = tags.get("lora_rank", "")
    values = {
        "version": version.version,
        "digest": version.digest,
        "uri": version.uri,
        "base": tags.get("base_model"),
        "mode": tags.get("mode"),
        "base_uri": f"{root}/{tags.get('base_key')}" if adapter else None,
        "base_digest": tags.get("base_digest") if adapter else None,
        "lora_rank": (int(rank) if rank.isdigit() else None) if adapter else None,
        "answers_uri": f"{root}/{tags['answers_key']}" if tags.get("answers_key") else None,
        "answers_sha256": tags.get("answers_sha256"),
        "card": str(card_path(version.tenant, version.model, version.version)),
    }
    given = {key: value for key, value in values.items() if value is not None}
    place = f"MLflow's {version.name} version {version.number}"
    return version_lines(parse(Release, given, place))


def card_files(tenant: str, model: str, lines: Lines) -> dict[str, bytes] | None:
    """The card and the README of the version in `lines`, from its store, by their paths here.

    None where the store is a volume that this machine does not have. Raises InputError if there
    is no card or it is of another version, DependencyError if the store does not answer.
    """
    root, _ = root_and_key(lines["uri"])
    if root.startswith("file://") and not folder_of(root).is_dir():
        return None
    store = open_store(root)
    folder = card_key(tenant, model, lines["version"])
    found = {}
    for name, suffix in (("card.yaml", ".yaml"), ("README.md", ".md")):
        try:
            content = store.read(f"{folder}/{name}")
        except FileNotFoundError:
            raise InputError(
                f"{store.uri_of(folder)}/{name}: is not written yet; run the chain to its end"
            ) from None
        found[str(card_path(tenant, model, lines["version"]).with_suffix(suffix))] = content
    place = f"{store.uri_of(folder)}/card.yaml"
    card = read_card(next(iter(found.values())).decode(), place)
    if card.identity.manifest_sha256.value != lines["digest"]:
        raise InputError(f"{place}: is the card of other weights; run the chain again")
    return found


def write_release(text: str | None, lines: Mapping[str, Any], place: str) -> str:
    """The file with these version lines; None: a new file, everything else at its default.

    Raises InputError if the file is not a mapping with one key a line, or the outcome would be no
    release.
    """
    text = text or ""
    where, old = _places(text, place), load_yaml(text, place) or {}
    new = _edited(text, where, old, lines, place)
    read_release(new, place)
    rest = {key: value for key, value in old.items() if key not in VERSION_LINES}
    if load_yaml(new, place) != rest | dict(lines):
        raise InputError(f"{place}: cannot be edited line by line; write one plain key a line")
    return new


def _places(text: str, place: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Each top-level key with where it and its value stand."""
    load_yaml(text, place)
    node = yaml.compose(text, FAST)
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        raise InputError(f"{place}: is not a mapping with one key a line; write it so")
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if key.value in found:
            raise InputError(f"{place}: {key.value}: is there twice; remove one")
        found[key.value] = (key, value)
    return found


def _edited(
    text: str,
    where: Mapping[str, tuple[yaml.Node, yaml.Node]],
    old: Mapping[str, Any],
    lines: Mapping[str, Any],
    place: str,
) -> str:
    rows = re.findall(r"[^\n]*\n|[^\n]+", text)
    end = "\r\n" if rows and rows[0].endswith("\r\n") else "\n"
    if rows and not rows[-1].endswith("\n"):
        rows[-1] += end
    # New lines go behind the version line before them, or before all keys.
    behind = min((key.start_mark.line for key, _ in where.values()), default=len(rows))
    added: dict[int, list[str]] = {}
    for key in VERSION_LINES:
        value = lines.get(key)
        if key not in where:
            if value is not None:
                added.setdefault(behind, []).append(f"{key}: {_scalar(value)}{end}")
            continue
        name, node = where[key]
        row, first, last = name.start_mark.line, node.start_mark, node.end_mark
        plain = isinstance(node, yaml.ScalarNode) and {first.line, last.line} == {row}
        if not plain or rows[row][first.column :].startswith(("&", "*", "!")):
            raise InputError(f"{place}: {key}: is not one plain value on its line; write it so")
        if value is None:
            rows[row] = ""
        elif old[key] != value:
            before, after = rows[row][: first.column], rows[row][last.column :]
            gap = "" if before.endswith((" ", "\t")) else " "
            rows[row] = f"{before}{gap}{_scalar(value)}{after}"
        behind = row + 1
    parts = [[*added.get(index, []), row] for index, row in enumerate([*rows, ""])]
    return "".join(piece for part in parts for piece in part)


def _scalar(value: Any) -> str:
    """As YAML; in quotes whatever some reader of YAML might take for a number or a word."""
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if PLAIN.fullmatch(text) and not text.endswith(":") and yaml.load(text, FAST) == text:
        return text
    return json.dumps(text)


def change_message(
    tenant: str, model: str, stage: Stage, lines: Mapping[str, Any], why: str, actor: str
) -> str:
    """The commit message of a release that changes, with trailers for whoever looks for them."""
    card = f"Its card: {lines['card']}" if "card" in lines else "It brings no card along."
    return message(
        f"Release {tenant}/{model} {lines['version']} to {stage}",
        f"{why}\n{card}",
        {
            "Tenant": tenant,
            "Model": model,
            "Release": stage,
            "Version": str(lines["version"]),
            "Digest": str(lines["digest"]),
            "Actor": actor,
        },
    )
