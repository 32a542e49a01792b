"""Write what is known about the version: card.yaml and the README made from it."""

from __future__ import annotations

import hashlib

from kuznia.card_views import card_yaml, readme
from kuznia.cards import build_card, card_key, load_rules
from kuznia.contracts.steps import File, ModelCardInputs, ModelCardOutputs
from steps.context import Context


def run(inputs: ModelCardInputs, context: Context) -> ModelCardOutputs:
    """Make the card of a version and its README.

    Reads: the outputs of all steps before, and the rule file.
    Writes: card.yaml and README.md under the run, and the same beside the version's name in cards/.
    Fails when: the store does not answer (3). What nobody said is marked missing, not an error.
    Safe to repeat because: equal inputs give equal bytes, and each file is replaced whole.
    """
    card = build_card(inputs, load_rules())
    files = {"card.yaml": card_yaml(card), "README.md": readme(card)}
    spec = inputs.plan.spec
    published = card_key(spec.tenant, spec.model, inputs.export.version)
    for name, text in files.items():
        context.store.write(f"{published}/{name}", text.encode())
    written = {
        name: _write(context, f"{inputs.plan.prefix}/model-card/{name}", text.encode())
        for name, text in files.items()
    }
    for path in card.missing:
        print(f"model-card: {path} is missing", flush=True)
    return ModelCardOutputs(
        card=written["card.yaml"],
        readme=written["README.md"],
        complete=not card.missing,
        missing=card.missing,
    )


def _write(context: Context, key: str, value: bytes) -> File:
    context.store.write(key, value)
    return File(key=key, sha256=hashlib.sha256(value).hexdigest(), bytes=len(value))
