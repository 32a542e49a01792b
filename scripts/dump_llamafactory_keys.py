"""Write the keys that LLaMA-Factory accepts to kuznia/contracts/llamafactory_keys.json.

With type, default and group, sorted, so that a diff shows what a new version brought. Run it in the
`train` environment after its LLaMA-Factory or transformers changes. It needs no arguments; a path
as the first one writes there instead.
"""

import dataclasses
import json
import sys
from enum import Enum
from pathlib import Path
from typing import Any

from llamafactory.hparams import (  # type: ignore[import-not-found]
    DataArguments,
    FinetuningArguments,
    GeneratingArguments,
    ModelArguments,
    TrainingArguments,
)

TARGET = Path(__file__).parents[1] / "kuznia" / "contracts" / "llamafactory_keys.json"
GROUPS = {
    "model": ModelArguments,
    "data": DataArguments,
    "training": TrainingArguments,
    "finetuning": FinetuningArguments,
    "generating": GeneratingArguments,
}


def type_name(annotation: Any) -> str:
    """The annotation as a person writes it, the same in every process."""
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")


def default_value(field: dataclasses.Field[Any]) -> Any:
    """The default as JSON holds it; null where the trainer computes it."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return None
    if isinstance(value, Enum):
        return value.value
    return (
        value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else str(value)
    )


def keys() -> dict[str, dict[str, Any]]:
    """Every accepted key; the first group that has it names it."""
    found: dict[str, dict[str, Any]] = {}
    for group, arguments in GROUPS.items():
        for field in dataclasses.fields(arguments):
            if field.init:
                entry = {
                    "group": group,
                    "type": type_name(field.type),
                    "default": default_value(field),
                }
                found.setdefault(field.name, entry)
    return found


def main() -> None:
    """Write the file and say how many keys it has."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    found = keys()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{target.name}: {len(found)} keys")


if __name__ == "__main__":
    main()
