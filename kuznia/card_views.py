"""How a card is written: the canonical card.yaml, and a Hugging Face README made from it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from kuznia.cards import FOLDER
from kuznia.contracts.base import parse
from kuznia.contracts.card import Card, Leaf


class _Flow(dict[str, Any]):
    """A mapping that YAML writes on one line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Flow,
    lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=True),
)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # YAML 1.2 reads 12e456789012 as a number where PyYAML (1.1) sees text; a version may look so.
    quoted = "'" if re.fullmatch(r"[0-9]+[eE][0-9]+", value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=quoted)


_Dumper.add_representer(str, _text)


def card_yaml(card: Card) -> str:
    """The canonical card.yaml: one line a leaf, in the order of the contract."""
    return yaml.dump(
        _plain(card.model_dump(mode="json")),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=4096,
    )


def _plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "source" in value and "missing" in value:
        order = ("missing",) if value["missing"] is not None else ("value",)
        kept = {key: value[key] for key in (*order, "source", "evidence")}
        return _Flow({key: part for key, part in kept.items() if part is not None})
    return {key: _plain(part) for key, part in value.items()}


def read_card(text: str, place: str) -> Card:
    """The card in `text` (card.yaml); InputError with every fault if it is not one."""
    card: Card = parse(Card, yaml.safe_load(text), place)
    return card


def readme(card: Card) -> str:
    """README.md: Hugging Face front matter and the card in prose; gaps are shown as MISSING."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["show"] = _show
    front = yaml.dump(_front_matter(card), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return environment.get_template("README.md.j2").render(card=card, front_matter=front.strip())


def _show(leaf: Leaf[Any], pattern: str = "") -> str:
    """A leaf in prose."""
    if leaf.missing is not None:
        return f"**MISSING: {leaf.missing}**"
    value = leaf.value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return " to ".join(format(part, pattern) for part in value) if pattern else ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return format(value, pattern)


def _front_matter(card: Card) -> dict[str, Any]:
    identity, evaluation = card.identity, card.evaluation
    name = f"{identity.tenant.value}/{identity.model.value}"
    dataset = {
        "name": f"held-out rows of {name}",
        "type": name,
        "split": "test",
        "revision": (evaluation.dataset_sha256.value or "")[:12],
    }
    results = [
        {
            "type": metric,
            "name": metric.replace("_", " "),
            "value": round(found.value.value or 0, 4),
        }
        for metric, found in evaluation.metrics.items()
    ]
    adapter = card.base.relation.value == "adapter"
    matter: dict[str, Any] = {
        "language": list(card.base.languages.value or ()) or None,
        "license": (card.base.licence.value or "").lower(),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "base_model": card.base.name.value,
        "base_model_relation": card.base.relation.value,
        "tags": ["kuznia", f"risk:{card.purpose.risk.value}", card.training.method.value],
        "datasets": [name],
        "metrics": list(evaluation.metrics),
        "model-index": [
            {
                "name": f"{name}@{identity.version.value}",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": dataset,
                        "metrics": results,
                    }
                ],
            }
        ],
    }
    return {key: value for key, value in matter.items() if value is not None}
