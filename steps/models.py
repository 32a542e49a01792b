"""What evaluate and verify share: loading models and asking them, greedily and reproducibly.

torch, transformers and peft are imported inside the functions: only the train image has them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kuznia.contracts.steps import Hardware
from kuznia.errors import InputError

Messages = list[dict[str, str]]
"""A conversation: {"role", "content"} objects in order."""

NOISY = "bitsandbytes.backends.cpu.ops"
"""A logger that warns, on some CPUs, of slow 4-bit weights that nobody asked for."""

BATCH = 64
"""Prompts answered at once. One size for all arms: greedy answers may change with the batch."""


def prepare(hardware: Hardware) -> None:
    """Make torch and transformers quiet, offline and as wide as planned; call it first."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Threads that spin while they wait cost three times the work where the cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch
    import transformers

    logging.getLogger(NOISY).setLevel(logging.ERROR)
    torch.set_num_threads(hardware.threads)
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def memory_faults() -> Iterator[None]:
    """Turn a GPU's lack of memory into an InputError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        # What follows is about torch's allocator.
        said = ". ".join(str(error).split(". ")[:2])
        raise InputError(
            f"config: hardware: the GPU has too little memory to ask the model ({said}); run again "
            "on one with more, or set more gpus, a smaller base or evaluation.max_new_tokens lower"
        ) from error


def gpu_memory(hardware: Hardware) -> int:
    """Bytes of memory of the GPUs that `load_model` uses."""
    import torch

    gpus = range(min(max(hardware.gpus, 1), torch.cuda.device_count()))
    return sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus)


def read_rows(path: Path, limit: int | None = None) -> list[Messages]:
    """Conversations of a data-check file, each ending with the assistant's expected answer."""
    rows: list[Messages] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if limit is not None and len(rows) == limit:
                break
            rows.append(json.loads(line)["messages"])
    return rows


def load_model(folder: Path, hardware: Hardware, dtype: str | None = None) -> Any:
    """The model in `folder`, on a CPU in float32, on GPUs in the planned number format.

    `dtype` overrules either. On several GPUs its layers are spread over them.
    """
    import torch
    from transformers import AutoModelForCausalLM

    place = "auto" if hardware.gpus > 1 else hardware.device
    usual = "float32" if place == "cpu" else hardware.dtype
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype or usual),
        device_map=None if place == "cpu" else place,
        trust_remote_code=False,
    )
    return model.eval()


def load_adapted(base: Path, adapter: Path, hardware: Hardware, dtype: str | None = None) -> Any:
    """The base with a LoRA adapter on top, not merged; `disable_adapter()` gives the base."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_model(base, hardware, dtype), adapter).eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`; InputError if it has no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise InputError(
            f"{folder}: the tokenizer has no chat template; choose an instruction-tuned base"
        )
    return tokenizer


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of a conversation up to where the model is to answer."""
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return ids


def row_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of a conversation with its answer, as the chat template writes them."""
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    return ids


def answer_all(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    max_new_tokens: int,
    say: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """One greedy answer a prompt, in their order, white space around it removed."""
    found = answer_ids(model, tokenizer, prompts, max_new_tokens, say)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]


def answer_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    max_new_tokens: int,
    say: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Token ids of one greedy answer a prompt, in their order, up to and with what ended it.

    Batches of BATCH prompts of like length, padded on the left. Sampling settings and penalties
    of the model's own generation_config are not used. `say` gets the number of prompts done.
    """
    import torch
    from transformers import GenerationConfig

    encoded = [prompt_ids(tokenizer, messages) for messages in prompts]
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
    stops = stop_ids(model, tokenizer)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=pad,
    )
    answers: list[list[int]] = [[] for _ in encoded]
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        width = len(encoded[chosen[-1]])
        gaps = [width - len(encoded[index]) for index in chosen]
        ids = [[pad] * gap + encoded[index] for gap, index in zip(gaps, chosen, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        with torch.inference_mode():
            out = model.generate(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
            )
        for index, row in zip(chosen, out, strict=True):
            given: list[int] = row[width:].tolist()
            end = next((at for at, token in enumerate(given, 1) if token in stops), None)
            answers[index] = given[:end]
        say(start + len(chosen))
    return answers


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's and those the model's own settings name."""
    own = model.generation_config.eos_token_id
    named = own if isinstance(own, list) else [own]
    return sorted({i for i in (*named, tokenizer.eos_token_id) if i is not None})
