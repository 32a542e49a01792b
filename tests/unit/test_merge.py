"""The shard-wise merge, against PEFT's own on the same adapters."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kuznia.errors import InputError
from steps.tensors import Tensor, tensors_of
from tests.conftest import FIXTURES
from workflows.environments import variables_of


@pytest.fixture(scope="module")
def merged(
    tiny_base: Path,
    trained_weights: Path,
    train_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """Folder of what merge_all wrote, and what it said."""
    out = tmp_path_factory.mktemp("merged")
    done = subprocess.run(
        [train_python, FIXTURES / "merge_all.py", tiny_base, trained_weights, out],
        env=os.environ | variables_of("train"),
        capture_output=True,
        text=True,
        check=True,
    )
    return out, json.loads(done.stdout)


def content(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Number format, shape and bytes of every tensor, by name."""

    def read(tensor: Tensor) -> bytes:
        with tensor.path.open("rb") as file:
            file.seek(tensor.start)
            return file.read(tensor.bytes)

    return {
        name: (tensor.dtype, tensor.shape, read(tensor))
        for name, tensor in tensors_of(folder).items()
    }


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns", "transposed"])
def test_equals_peft_bit_for_bit(
    name: str, merged: tuple[Path, dict[str, Any]], trained_weights: Path, tiny_base: Path
) -> None:
    out, said = merged
    ours = content(out / name)
    theirs = content(trained_weights / "merged" / name)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []
    base = content(trained_weights / "gpt2" if name == "transposed" else tiny_base)
    assert ours != base
    assert 0 <= said[name]["unchanged"] < 0.01


def test_keeps_the_base_s_files_and_orders_keys(
    merged: tuple[Path, dict[str, Any]], trained_weights: Path
) -> None:
    out, _ = merged
    names = sorted(path.name for path in (trained_weights / "sharded").glob("*.safetensors"))
    assert len(names) > 1
    assert sorted(path.name for path in (out / "sharded").iterdir()) == names
    assert content(out / "sharded") == content(out / "plain")
    whole = (out / "plain" / "model.safetensors").read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert list(header) == sorted(header)
    assert int.from_bytes(whole[:8], "little") % 8 == 0


def test_equal_inputs_give_equal_bytes(merged: tuple[Path, dict[str, Any]]) -> None:
    out, _ = merged
    one, other = (out / name / "model.safetensors" for name in ("plain", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_full_weights_take_the_base_s_number_format(
    merged: tuple[Path, dict[str, Any]], tiny_base: Path, trained_weights: Path
) -> None:
    out, said = merged
    base, ours = tensors_of(tiny_base), tensors_of(out / "full")
    assert {name: (each.dtype, each.shape) for name, each in ours.items()} == {
        name: (each.dtype, each.shape) for name, each in base.items()
    }
    assert {each.dtype for each in tensors_of(trained_weights / "full").values()} == {"F32"}
    assert content(out / "full") != content(tiny_base)
    assert 0 < said["full"]["unchanged"] < 0.05


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dora", "adapter_config.json: use_dora: true cannot be merged; train without it or set"),
        ("modules-to-save", 'modules_to_save: ["lm_head"] cannot be merged'),
        ("lora-bias", "lora_bias: true cannot be merged"),
        ("tokens", "trainable_token_indices: [5, 6] cannot be merged"),
        ("pissa", "init_lora_weights: pissa changed the base's weights as well"),
        ("embedding", "lora_embedding_A, base_model.model.model.embed_tokens.lora_embedding_B: no"),
        ("head", "lm_head.weight: input and output embedding at once in this base"),
        ("not-finite", "training diverged, lower learning_rate and train again"),
        ("other-base", "model.layers.0.mlp.gate_proj.weight and 12 more: not in the base"),
        ("full-other", "transformer.h.0.attn.c_attn.weight and 14 more: missing; train again"),
    ],
)
def test_refuses_what_it_cannot_do_exactly(
    name: str, message: str, merged: tuple[Path, dict[str, Any]]
) -> None:
    problems = merged[1][name]["problems"]
    assert any(message in problem for problem in problems), problems


def test_refuses_a_folder_without_safetensors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no .safetensors files; convert the weights first"):
        tensors_of(tmp_path)


def test_a_second_copy_of_the_weights_is_passed_over(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for name in ("consolidated.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (tmp_path / "consolidated-2.safetensors").write_bytes(b"")
    assert [each.path.name for each in tensors_of(tmp_path).values()] == ["model.safetensors"]
