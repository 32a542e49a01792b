"""Whether a served model is the version it should be: `python3 -m steps.prove --answers FILE ...`.

The startup probe of a pod that serves. It asks how likely the model finds the recorded answers
(steps/answers.py) and compares: near enough to the version, and nearer than the base. Exit codes:
0 it is the version; 1 not up yet, or another model, with one line that says so. Standard library
only: a probe must start fast.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from kuznia.termination import report

SECONDS = 60
"""For one question."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NotUp(Exception):
    """The server does not answer yet."""


class Otherwise(Exception):
    """What is served is not what was recorded."""


def main(argv: list[str] | None = None) -> int:
    """Ask, compare, and say it."""
    arguments = _parser().parse_args(argv)
    url, model = arguments.url.rstrip("/"), arguments.model
    mark = Path(tempfile.gettempdir()) / "kuznia-proved"
    recorded = arguments.answers.read_bytes() if arguments.answers.exists() else b""
    proof = f"{url} {model} {hashlib.sha256(recorded).hexdigest()} {_server()}"
    if mark.exists() and mark.read_text("utf-8") == proof:
        return 0
    try:
        said = _prove(url, model, json.loads(recorded)) if recorded else _answers(url, model)
    except NotUp as error:
        print(f"{model}: not up yet ({error})")
        return 1
    except Otherwise as error:
        report([f"{model}: {error}"])
        _end()
        return 1
    mark.write_text(proof, "utf-8")
    print(f"{model}: {said}")
    return 0


def _prove(url: str, model: str, recorded: dict[str, Any]) -> str:
    """What was found; raises Otherwise if it is not what `recorded` says."""
    _health(url)
    rows, longest = recorded["rows"], _context(url, model)
    fitting = [row for row in rows if len(row["prompt"]) + len(row["answer"]) < longest]
    if not fitting:
        least = min(len(row["prompt"]) + len(row["answer"]) for row in rows) + 1
        raise Otherwise(
            f"no recorded prompt fits the context of {longest} tokens, so nothing can be proved; "
            f"set context_length to {least} or more"
        )
    served = [p for row in fitting for p in _logprobs(url, model, row["prompt"], row["answer"])]
    of_version = [p for row in fitting for p in row["logprobs"]]
    of_base = [p for row in fitting for p in row["base_logprobs"]]
    version, base = _distance(served, of_version), _distance(served, of_base)
    limit = recorded["limits"]["mean_difference"]
    figures = (
        f"on {len(served)} tokens {version:.3g} from the version and {base:.3g} from the base, "
        f"which differ by {_distance(of_version, of_base):.3g}; allowed {limit:g}"
    )
    if version <= limit and version < base:
        return f"answers as recorded ({figures})"
    if base <= limit:
        raise Otherwise(
            f"answers like its base ({figures}); serve the version or its adapter, not the base, "
            "or train longer where the two hardly differ"
        )
    raise Otherwise(
        f"answers otherwise than recorded ({figures}); serve the weights of this version in a "
        "number format that keeps them, or return to the version before"
    )


def _distance(some: list[float], others: list[float]) -> float:
    """Mean absolute difference, nats."""
    return sum(abs(a - b) for a, b in zip(some, others, strict=True)) / len(some)


def _answers(url: str, model: str) -> str:
    """Without recorded answers it is enough that there is one."""
    _health(url)
    question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    _ask(f"{url}/v1/chat/completions", {"model": model, "temperature": 0, **question})
    return "answers; nothing was recorded to compare with"


def _logprobs(url: str, model: str, prompt: list[int], answer: list[int]) -> list[float]:
    """How likely the served model finds each token of the answer."""
    question = {"model": model, "prompt": [*prompt, *answer], "max_tokens": 1, "temperature": 0}
    found = _ask(f"{url}/v1/completions", {**question, "prompt_logprobs": 0})
    places = found["choices"][0]["prompt_logprobs"][len(prompt) :]
    return [place[str(token)]["logprob"] for place, token in zip(places, answer, strict=True)]


def _context(url: str, model: str) -> int:
    """Tokens that the server takes for `model`; an adapter's are its base's."""
    served = _ask(f"{url}/v1/models")["data"]
    if model not in (names := [entry["id"] for entry in served]):
        raise Otherwise(f"is not served, but {', '.join(names)}; correct the served model's name")
    return min(int(entry["max_model_len"]) for entry in served if entry.get("max_model_len"))


def _health(url: str) -> None:
    try:
        _DIRECT.open(f"{url}/health", timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        # LLaMA-Factory's server has no /health.
        if error.code != 404:
            raise NotUp(f"/health answers {error.code}") from None
    except OSError as error:
        raise NotUp(str(getattr(error, "reason", error))) from None


def _ask(place: str, question: dict[str, Any] | None = None) -> Any:
    body = json.dumps(question).encode() if question else None
    request = urllib.request.Request(place, body, {"Content-Type": "application/json"})
    try:
        with _DIRECT.open(request, timeout=SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(300).decode(errors="replace").split())
        if error.code >= 500:
            raise NotUp(f"{place} answers {error.code}: {said}") from None
        raise Otherwise(
            f"{place} answers {error.code}: {said}; correct the release's engine or arguments"
        ) from None
    except OSError as error:
        raise NotUp(str(getattr(error, "reason", error))) from None


def _server() -> str:
    """Tells this start of the server from the one before: when the container's first process began.

    /tmp, where the mark lies, outlives a container.
    """
    stat = Path("/proc/1/stat").read_text("utf-8")
    return stat.rpartition(")")[2].split()[19]


def _end() -> None:
    """End the server, whose process the environment names, so that the pod starts anew and the
    reason is shown as its last state."""
    if process := os.environ.get("KUZNIA_PROVE_ENDS"):
        os.kill(int(process), signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m steps.prove", description=__doc__)
    parser.add_argument("--answers", type=Path, required=True, help="answers.json, if there is one")
    parser.add_argument("--url", required=True, help="address of the server, without /v1")
    parser.add_argument("--model", required=True, help="the name under which it is served")
    return parser


if __name__ == "__main__":
    sys.exit(main())
