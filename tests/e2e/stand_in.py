"""The chain's WorkflowTemplate with a few lines of Python in place of every step.

Order, retries, parameters and outputs are the compiled template's; what a pod runs is not. How a
run behaves is said by its model's name: see PROGRAM.
"""

from __future__ import annotations

from typing import Any

IMAGE = "python:3.11-slim-bookworm"
PROGRAM = """
import json, re, sys, time
step, words = sys.argv[1], sys.argv[2:]
given = dict(word.split("=", 1) for word in words[1:-4:2])
model = re.search(r"^model: (.*)$", given["config"], re.M)[1] if step == "plan" else json.loads(
    given["plan"])["model"]
def fail(code, *lines):
    text = "".join(f"error: {line}\\n" for line in lines)
    sys.stderr.write(text)
    open("/dev/termination-log", "w").write(text)
    sys.exit(code)
print(f"this is {step} of {model}", flush=True)
for done in range(3):
    line = {"step": step, "done": done, "total": 2, "unit": "parts"}
    print("progress: " + json.dumps(line), flush=True)
    time.sleep(0.2)
if model.startswith("waits") and step == "plan":
    time.sleep(int(model.rpartition("-")[2]))
if model.startswith(("faulty", "waits")) and step == "plan":
    fail(2, "config: data.train: is wrong; correct it", "config: seed: is wrong too; correct it")
if model.startswith("unanswered") and step == "plan":
    fail(3, "the tracker does not answer; try again")
made = {
    "plan": {"model": model},
    "evaluate": {"verdict": "promote", "metrics": {"exact_match": {"base": 0.1, "candidate": 0.9}}},
    "register": {"version": "0123456789ab"},
    "model-card": {"readme": {"key": "models/acme/README.md"}},
}
open(words[-3], "w").write(json.dumps(made.get(step, {"step": step})))
"""
PLACE = (
    "{{=inputs.parameters.config contains 'model: unplaceable' ? "
    """'{"nodeSelector":{"no":"such-node"} }' : '{}'}}"""
)


def stand_in_template(
    compiled: dict[str, Any], account: str, semaphore: dict[str, str] | None = None
) -> dict[str, Any]:
    """`compiled` with images, commands and pods replaced; its pods run as `account`.

    `semaphore` (name and key of a ConfigMap) is taken by each run before it starts.
    """
    spec = compiled["spec"]
    known = {template["name"]: template for template in spec["templates"]}
    chain = known[spec["entrypoint"]]
    steps = [_stand_in(known[task["template"]]) for task in chain["dag"]["tasks"]]
    templates = [{"name": chain["name"], "dag": chain["dag"]}, *steps]
    fields = ("entrypoint", "arguments", "parallelism", "securityContext")
    kept = {key: spec[key] for key in fields if key in spec}
    if semaphore:
        kept["synchronization"] = {"semaphores": [{"configMapKeyRef": semaphore}]}
    return {
        "apiVersion": compiled["apiVersion"],
        "kind": compiled["kind"],
        "metadata": {"name": compiled["metadata"]["name"]},
        "spec": {**kept, "serviceAccountName": account, "templates": templates},
    }


def _stand_in(template: dict[str, Any]) -> dict[str, Any]:
    volumes = ("out", "work")
    kept = {
        key: template[key]
        for key in ("name", "inputs", "outputs", "retryStrategy", "activeDeadlineSeconds")
        if key in template
    }
    if "retryStrategy" in kept:
        # Another node for the next attempt is more than a test cluster has.
        strategy = {k: v for k, v in kept["retryStrategy"].items() if k != "affinity"}
        kept["retryStrategy"] = {**strategy, "backoff": {"duration": "1s"}}
    if template["name"] == "plan":
        kept["podSpecPatch"] = PLACE
    return {
        **kept,
        "volumes": [{"name": name, "emptyDir": {}} for name in volumes],
        "container": {
            "image": IMAGE,
            "command": ["python", "-c", PROGRAM],
            "args": template["container"]["args"],
            "volumeMounts": [{"name": name, "mountPath": f"/kuznia/{name}"} for name in volumes],
        },
    }
