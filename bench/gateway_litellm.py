"""LiteLLM's proxy, which the gateway is measured against, in an environment of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from bench.gateway_load import Load
from bench.gateway_parts import Running, free_port, process, until_answered
from bench.gateway_wire import request
from kuznia import settings
from kuznia.errors import DependencyError
from kuznia.progress import say
from kuznia.sources import uv_program

LITELLM = "1.106.2"
"""The newest that was no release with malware: 1.82.7, 1.82.8 and 1.107.0 were."""


@contextmanager
def litellm(load: Load, folder: Path, core: int) -> Iterator[Running]:
    """LiteLLM's proxy as its documentation wants it for production: one worker for the core."""
    folder.mkdir(parents=True)
    config = {
        "model_list": [
            {
                "model_name": "bench",
                "litellm_params": {
                    "model": "openai/gpt-4o",
                    "api_base": f"http://127.0.0.1:{load.port}/v1",
                    "api_key": "none",
                },
            }
        ],
        "litellm_settings": {
            "set_verbose": False,
            "callbacks": [],
            "num_retries": 0,
            "request_timeout": 600,
        },
        "general_settings": {"master_key": "sk-bench", "disable_spend_logs": True},
        "router_settings": {"num_retries": 0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    port = free_port()
    command = [
        str(litellm_program()),
        "--config",
        str(folder / "config.yaml"),
        "--num_workers",
        "1",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    variables = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }
    questions = [
        [request("127.0.0.1", "sk-bench", "bench", streamed)] for streamed in (False, True)
    ]
    with process(command, core, folder / "log", variables) as started:
        until_answered(load, port, questions[0][0], folder)
        yield Running(port, (started,), *questions)


def litellm_program() -> Path:
    """LiteLLM's command in an environment of its own, installed on first use."""
    folder = settings.cache() / "envs" / f"bench-litellm-{LITELLM}"
    if not (folder / ".complete").exists():
        say(f"installing litellm {LITELLM} into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        python = folder / "bin" / "python"
        install = ["pip", "install", "--only-binary", ":all:", "--compile-bytecode"]
        # httptools: uvicorn is quicker with it.
        install += ["--python", str(python), f"litellm[proxy]=={LITELLM}", "httptools"]
        for command in (["venv", "--python", "3.11", str(folder)], install):
            done = subprocess.run([uv_program(), "--quiet", *command], check=False)
            if done.returncode:
                raise DependencyError(
                    "litellm cannot be installed; check network and package index"
                )
        (folder / ".complete").touch()
    return folder / "bin" / "litellm"
