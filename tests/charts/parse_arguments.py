"""Parses command lines as a server would: in `serve` vLLM, in `train` LLaMA-Factory.

Reads a JSON object of argument lists, prints what became of them as the last line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any


def vllm(lines: dict[str, list[str]]) -> dict[str, Any]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    found = {}
    for name, line in lines.items():
        parsed = parser.parse_args(line)
        validate_parsed_serve_args(parsed)
        engine = AsyncEngineArgs.from_cli_args(parsed)
        modules = [dataclasses.asdict(each) for each in parsed.lora_modules or []]
        found[name] = {
            "max_model_len": engine.max_model_len,
            "shutdown_timeout": engine.shutdown_timeout,
            "generation_config": engine.generation_config,
            "trust_remote_code": engine.trust_remote_code,
            "enable_lora": engine.enable_lora,
            "served_model_name": engine.served_model_name,
            "lora_modules": modules,
            "enable_force_include_usage": parsed.enable_force_include_usage,
        }
    options = [option for action in parser._actions for option in action.option_strings]
    return {"lines": found, "options": options}


def llamafactory(lines: dict[str, list[str]]) -> dict[str, Any]:
    from llamafactory.hparams import get_infer_args

    found = {}
    for name, line in lines.items():
        sys.argv = ["llamafactory-cli", *line]
        model, data, _, generating = get_infer_args()
        found[name] = {
            "model_name_or_path": model.model_name_or_path,
            "infer_backend": model.infer_backend,
            "infer_dtype": model.infer_dtype,
            "template": data.template,
            "max_new_tokens": generating.max_new_tokens,
            "trust_remote_code": model.trust_remote_code,
        }
    return {"lines": found}


if __name__ == "__main__":
    parse = {"serve": vllm, "train": llamafactory}[sys.argv[1]]
    print(json.dumps(parse(json.load(sys.stdin))))
