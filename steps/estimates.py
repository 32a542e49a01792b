"""How much a training run takes, from the shape of the base model and of the rows.

Rough on purpose: everything is known before anything is downloaded. Constants carry their source.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

from kuznia.contracts.catalogue import BaseModelEntry
from kuznia.contracts.runspec import Data, Method
from kuznia.errors import InputError
from kuznia.machine import GIB
from steps.messages import estimated_tokens, tidy
from steps.rows import Faults, read_rows

CPU_FLOPS_PER_CORE = {"float32": 75e9, "bfloat16": 150e9}
"""Sustained FLOP/s of one core in LoRA training, by number format. SmolLM2-135M, batch 16 gave:
5.4 to 6.3 padded rows/s of 55 tokens on 2 cores of a 2.5 GHz Xeon in float32; 17 to 20 rows/s, 31
tokens of each computed, on 2 Zen 5 cores in bfloat16."""
GPU_UTILISATION = 0.35
"""Share of the bf16 peak that training reaches. Published for one H100, Llama 3 8B, LoRA, rows of
4096 tokens: 0.41 (NeMo AutoModel performance summary, 2025); shorter rows reach less."""
GPU_STEP_SECONDS = 0.15
"""A step on a GPU takes at least this: launching the kernels of a small model costs more than
running them. An assumption."""
PARALLEL_EFFICIENCY = 0.9
"""Share of their added speed that GPUs reach which share a batch: after every step they wait for
the slowest and add up gradients. An assumption for one node; between nodes the network decides."""
QLORA_SLOWDOWN = 1.5
"""4-bit weights are unpacked at every use. An assumption within what is published (1.3 to 1.7)."""
FLOP_PER_PARAMETER = {"lora": 4, "qlora": 4, "full": 6}
"""FLOP a parameter and token: forward 2, gradients of activations 2, of weights 2 (full only)."""
PADDING = 1.25
"""Tokens that are computed for each token of the rows; rows are padded to their batch's longest."""
ACTIVATION_VALUES = 34
"""Values kept a layer, token and hidden unit for the backward pass (Korthikanti et al. 2022, eq. 1,
in 2-byte values: 34 bytes, without the attention matrix, which SDPA does not keep)."""
LOGIT_COPIES = 3
"""Logits, their float32 copy and its gradient."""
PROCESS_GIB = {"cpu": 1.5, "cuda": 1.0}
"""The trainer's libraries in memory; on a GPU its context."""
SAMPLE = 50_000
"""Rows that are read for the estimate; the others are counted."""


@dataclass(frozen=True)
class Survey:
    """What was seen of the training rows. Tokens are estimated, with the template's."""

    rows: int
    tokens: int
    """Of all rows."""
    longest: int
    """Tokens of the longest row."""
    common: int = 0
    """Tokens that the base's own system prompt puts before every row."""

    def only(self, rows: int) -> Survey:
        """What that many of the rows come to."""
        return replace(self, rows=rows, tokens=self.tokens * rows // max(self.rows, 1))

    def common_once(self, batch: int) -> float:
        """Tokens that are computed for each token where a batch computes what is common once."""
        repeated = self.common * (1 - 1 / batch)
        return 1 - repeated * self.rows / self.tokens if self.tokens else 1.0


def survey(path: Path, name: str, data: Data, system: str | None) -> Survey:
    """Count rows and tokens; rows with faults are skipped, the step data-check names them.

    Raises InputError where no row can be read.
    """
    extra = estimated_tokens([{"role": "system", "content": system}]) if system else 0
    faults = Faults(name)
    rows = read_rows(path, name, data, faults)
    sample = (tidy(messages) for _, messages in itertools.islice(rows, SAMPLE))
    tokens = [estimated_tokens(messages, extra) for messages in sample]
    if not tokens:
        raise InputError(faults.lines() or f"{name}: holds no rows; put some into it")
    count = len(tokens)
    if count == SAMPLE:
        with path.open("rb") as file:
            blocks = iter(lambda: file.read(2**20), b"")
            count = max(count, sum(block.count(b"\n") for block in blocks))
    seen = sum(tokens) * count // len(tokens)
    return Survey(count, seen, max(tokens), extra)


@dataclass(frozen=True)
class Training:
    """The settings that decide how much memory and time training takes."""

    base: BaseModelEntry
    method: Method
    device: str
    lora_rank: int
    batch: int
    length: int
    """Tokens of the longest row that is trained on."""
    checkpointing: bool
    bf16: bool
    work: float = PADDING
    """Tokens that are computed for each token of the rows."""

    @property
    def trainable(self) -> float:
        """Trainable parameters. For LoRA: A and B at all linear layers of a Llama-like model."""
        if self.method == "full":
            return self.base.parameters
        hidden, layers = self.base.hidden_size, self.base.layers
        a_layer = (self.base.parameters - self.base.vocabulary * hidden) / layers
        intermediate = max((a_layer - 4 * hidden**2) / (3 * hidden), hidden)
        return self.lora_rank * layers * (8 * hidden + 3 * (hidden + intermediate))

    @property
    def memory_gib(self) -> float:
        """Peak memory of the trainer: on a GPU the GPU's, else the machine's."""
        base, width = self.base, 2 if self.bf16 else 4
        # 4 bits, their scales, and embeddings that stay in 16 bits.
        stored = {"lora": width, "qlora": 0.55, "full": 0}[self.method] * base.parameters
        if self.method == "qlora":
            stored += 1.5 * base.vocabulary * base.hidden_size
        # float32 weight and gradient, and Adam's two moments.
        trained = 16 * self.trainable
        tokens = self.batch * self.length
        layer = tokens * base.hidden_size * ACTIVATION_VALUES * width / 2
        kept = layer * base.layers
        if self.checkpointing:
            kept = layer + tokens * base.hidden_size * base.layers * width
        logits = LOGIT_COPIES * 4 * tokens * base.vocabulary
        return PROCESS_GIB[self.device] + (stored + trained + kept + logits) / GIB

    @property
    def disk_gib(self) -> float:
        """Base in cache and store, version in work folder and store, three checkpoints."""
        weights = 2 * self.base.parameters
        return (4 * weights + 3 * 12 * self.trainable) / GIB

    def flop(self, tokens: float) -> float:
        """Compute for that many tokens of the rows."""
        each = FLOP_PER_PARAMETER[self.method] + 2 * self.checkpointing
        return each * self.base.parameters * tokens * self.work

    def seconds(self, tokens: float, steps: int, flops: float) -> float:
        """Time for that many tokens in that many optimizer steps at `flops` FLOP/s."""
        slowdown = QLORA_SLOWDOWN if self.method == "qlora" else 1.0
        least = steps * GPU_STEP_SECONDS if self.device == "cuda" else 0.0
        return max(least, slowdown * self.flop(tokens) / flops)
