"""An adapter's products on a CPU in one function a layer, beside those of the frozen weight.

PEFT makes six products, four conversions and two sums of each layer's batch one by one. Here the
adapter's part is added by the product that makes it, the batch is converted once, and the weight is
kept as it is multiplied. The sum is the same, but for rounding; PEFT saves what was trained.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear
from transformers import TrainerCallback


class FusedLora(TrainerCallback):  # type: ignore[misc]
    """Has plain LoRA layers computed by `Product`, in bfloat16 where the training is in it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        for layer in model.modules():
            if isinstance(layer, Linear) and plain(layer):
                base = layer.base_layer
                if args.bf16:
                    base.weight = torch.nn.Parameter(base.weight.bfloat16(), requires_grad=False)
                layer.forward = MethodType(_forward, layer)


def plain(layer: Linear) -> bool:
    """Whether a layer is its weight and one adapter of two factors, and nothing else."""
    names = layer.active_adapters
    return (
        len(names) == 1
        and not layer.lora_variant
        and not layer.lora_bias[names[0]]
        and not layer.fan_in_fan_out
        and isinstance(layer.lora_dropout[names[0]], torch.nn.Identity)
        and type(layer.base_layer) is torch.nn.Linear
        and not any(each.requires_grad for each in layer.base_layer.parameters())
    )


def _forward(layer: Linear, batch: torch.Tensor) -> torch.Tensor:
    (name,), base = layer.active_adapters, layer.base_layer
    with torch.autocast("cpu", enabled=False):
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name]
        made: torch.Tensor = Product.apply(batch, base.weight, base.bias, down, up)
    return made


class Product(torch.autograd.Function):  # type: ignore[misc]
    """`batch @ (weight + up @ down).T + bias`, in the weight's number format.

    `batch` is (..., in), `weight` (out, in) and `bias` (out) or None, both frozen; `down` is
    (rank, in) and `up` (out, rank), scaled.
    """

    @staticmethod
    def forward(
        ctx: Any,
        batch: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
    ) -> torch.Tensor:
        ctx.form, ctx.formats = batch.shape, (batch.dtype, down.dtype, up.dtype)
        rows, down, up = (
            each.to(weight.dtype) for each in (batch.reshape(-1, batch.shape[-1]), down, up)
        )
        low = rows @ down.T
        made = torch.nn.functional.linear(rows, weight, bias).addmm_(low, up.T)
        ctx.save_for_backward(rows, low, weight, down, up)
        return made.view(*ctx.form[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low, weight, down, up = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
        lower = gradient @ up
        of_batch, of_down, of_up = ctx.formats
        batch = None
        if ctx.needs_input_grad[0]:
            batch = (gradient @ weight).addmm_(lower, down).view(ctx.form).to(of_batch)
        return batch, None, None, (lower.T @ rows).to(of_down), (gradient.T @ low).to(of_up)
