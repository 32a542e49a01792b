"""Trained weights in the base's shape: a LoRA adapter merged into it, or full weights cast to it.

Every tensor file of the base becomes one of the same name. Weights without an adapter are copied
byte by byte; the others become W + scale * (B @ A), computed in float32 and rounded once to the
base's number format, as PEFT's merge_and_unload does on a whole model in memory. What this cannot
do exactly, it refuses.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kuznia.errors import InputError
from steps.tensors import Progress, Tensor, read_rows, rewrite, tensors_of

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

_HARMLESS = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "init_lora_weights", "bias", "qalora_group_size", "megatron_core"),
    *("task_type", "peft_type", "peft_version", "auto_mapping", "inference_mode"),
    *("base_model_name_or_path", "revision"),
}
"""Keys of adapter_config.json that the merge obeys or that do not change it."""
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin an adapter that leave the base's weights as they are."""
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one weight: scale * (b @ a), transposed if the weight is."""

    a: Any
    b: Any
    scale: float
    transposed: bool

    def rows(self, first: int, count: int) -> Any:
        """`count` rows of the product from row `first`, float32."""
        if self.transposed:
            return (self.b @ self.a[:, first : first + count]).T * self.scale
        return (self.b[first : first + count] @ self.a) * self.scale

    @property
    def shape(self) -> tuple[int, ...]:
        out, into = self.b.shape[0], self.a.shape[1]
        return (into, out) if self.transposed else (out, into)


def merge_adapter(
    base: Path, adapter: Path, target: Path, say: Progress = lambda *_: None
) -> float:
    """Write base + adapter into folder `target`.

    Returns the share of the adapted weights that rounding left as they were. Raises InputError
    where the adapter does not fit the base, cannot be merged, or gives numbers not finite.
    """
    tensors, deltas = tensors_of(base), read_adapter(adapter)
    shapes = {name: delta.shape for name, delta in deltas.items()}
    _refuse(list(_misfits(shapes, tensors, _tied(base), str(adapter))))
    return rewrite(
        target,
        tensors,
        deltas.keys(),
        lambda name, first, rows: rows + deltas[name].rows(first, len(rows)),
        say,
    )


def cast_weights(base: Path, trained: Path, target: Path, say: Progress = lambda *_: None) -> float:
    """Write full trained weights into folder `target`, in the base's files and number formats.

    Returns the share of all weights that are as in the base. Raises InputError where the two
    are not of one shape, or numbers are not finite.
    """
    tensors, new = tensors_of(base), tensors_of(trained)
    if _tied(base):
        # A tied model may be stored with or without its output embedding.
        if EMBEDDING in new:
            new.setdefault(HEAD, new[EMBEDDING])
        new = {name: tensor for name, tensor in new.items() if name != HEAD or name in tensors}
    shapes = {name: tensor.shape for name, tensor in new.items()}
    faults = list(_misfits(shapes, tensors, False, str(trained)))
    if missing := sorted(tensors.keys() - new.keys()):
        faults.append(f"{trained}: {_some(missing)}: missing; train again")
    _refuse(faults)

    def trained_rows(name: str, first: int, rows: Any) -> Any:
        with new[name].path.open("rb") as file:
            return read_rows(file, new[name], first, len(rows)).float()

    return rewrite(target, tensors, tensors.keys(), trained_rows, say)


def read_adapter(folder: Path) -> dict[str, Delta]:
    """What the LoRA adapter in `folder` changes, by the name of the base's weight.

    Raises InputError with every reason why it cannot be merged exactly.
    """
    from safetensors.torch import load_file

    config = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
    problems = [f"{folder / ADAPTER_CONFIG}: {fault}" for fault in _config_faults(config)]
    pairs: dict[str, dict[str, Any]] = {}
    strange, odd = [], []
    for key, value in sorted(load_file(folder / ADAPTER_WEIGHTS).items()):
        match = _KEY.match(key)
        if match and value.dim() == 2:
            pairs.setdefault(match["module"], {})[match["side"]] = value.float()
        else:
            strange.append(key)
    deltas = {}
    for module, pair in pairs.items():
        rank = _pattern(config.get("rank_pattern"), module, config["r"])
        if set(pair) != {"A", "B"} or not rank == pair["A"].shape[0] == pair["B"].shape[1]:
            odd.append(f"{module} (rank {rank})")
            continue
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        transposed = bool(config.get("fan_in_fan_out"))
        deltas[f"{module}.weight"] = Delta(pair["A"], pair["B"], scale, transposed)
    place = folder / ADAPTER_WEIGHTS
    if strange:
        problems.append(
            f"{place}: {_some(strange)}: no LoRA matrix of a linear layer, which is all that can "
            "be merged; train without it or set export.merge: false"
        )
    if odd:
        problems.append(f"{place}: {_some(odd)}: no A and B of that rank; train again")
    if not deltas and not problems:
        problems.append(f"{place}: holds no LoRA matrices; train again")
    _refuse(problems)
    return deltas


def _config_faults(config: dict[str, Any]) -> Iterator[str]:
    way_out = "train without it or set export.merge: false"
    if config.get("peft_type") != "LORA":
        yield f"peft_type {config.get('peft_type')} cannot be merged, only LORA; {way_out}"
    for key, value in sorted(config.items()):
        if key not in _HARMLESS and value not in (None, False, {}, []):
            yield f"{key}: {json.dumps(value)} cannot be merged; {way_out}"
    if config.get("bias", "none") != "none":
        yield f"bias: {config['bias']} cannot be merged; {way_out}"
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        yield f"init_lora_weights: {start} changed the base's weights as well; {way_out}"


def _misfits(
    shapes: dict[str, tuple[int, ...]], tensors: dict[str, Tensor], tied: bool, place: str
) -> Iterator[str]:
    """Why new weights of these shapes do not fit the base's; nothing if they do."""
    shared = [name for name in shapes if tied and name in (HEAD, EMBEDDING)]
    unknown = [name for name in shapes if name not in tensors and name not in shared]
    other = [
        f"{name} {list(shape)} instead of {list(tensors[name].shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if shared:
        yield (
            f"{place}: {_some(shared)}: input and output embedding at once in this base, so one "
            "side alone cannot be merged; leave it out of lora_target"
        )
    if unknown:
        yield f"{place}: {_some(unknown)}: not in the base; train on this base again"
    if other:
        yield (
            f"{place}: {_some(other)}: another shape than in the base; train on this base again, "
            "without resizing its vocabulary"
        )


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """The value that PEFT takes for `module`: that of the first pattern that matches its end."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _tied(base: Path) -> bool:
    config = json.loads((base / "config.json").read_text("utf-8"))
    return bool(config.get("tie_word_embeddings", False))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise InputError(problems)
