"""Which fields Argo's templates have in a version: `python -m scripts.argo_fields VERSION CRD...`.

CRD is a file of manifests/base/crds/full of that version. Writes tests/fixtures/argo-fields/
VERSION.json: the fields as nested objects, `"*"` for what is not described further. Parts that the
chain has no use for (LEFT_OUT) are left out; using one of them makes the test fail.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FIELDS = Path(__file__).parents[1] / "tests" / "fixtures" / "argo-fields"
LEFT_OUT = {
    *("affinity", "artifactGC", "artifacts", "artifactRepositoryRef", "archiveLocation"),
    *("containerSet", "data", "dnsConfig", "ephemeral", "executorConfig", "hooks", "http"),
    *("initContainers", "inline", "lifecycle", "livenessProbe", "memoize", "plugin", "projected"),
    *("readinessProbe", "resource", "script", "sidecars", "startupProbe", "status", "steps"),
    *("suspend", "templateDefaults", "volumeClaimTemplates", "withItems", "withSequence"),
}
KEPT_IN = {"retryStrategy": {"affinity"}}
"""What is needed all the same below a field."""


def fields(schema: dict[str, Any], name: str = "") -> Any:
    """A schema's fields as nested objects."""
    if "items" in schema:
        return fields(schema["items"], name)
    if "properties" not in schema:
        return "*"
    left_out = LEFT_OUT - KEPT_IN.get(name, set())
    return {
        key: fields(value, key)
        for key, value in sorted(schema["properties"].items())
        if key not in left_out
    }


def main(version: str, *paths: str) -> None:
    kinds = {}
    for path in paths:
        document = yaml.load(Path(path).read_text("utf-8"), yaml.CSafeLoader)
        (served,) = document["spec"]["versions"]
        properties = served["schema"]["openAPIV3Schema"]["properties"]
        kinds[document["spec"]["names"]["kind"]] = {"spec": fields(properties["spec"])}
    FIELDS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kinds, separators=(",", ":"))
    (FIELDS / f"{version}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
