"""Turn a GGUF file into a Hugging Face folder.

For Llama-like models with a byte-level BPE tokenizer, which is what small models that ship inside
a package are. The tensors are the file's, dequantised in float32 and rounded once; the JSON files
are written here, so the same GGUF gives the same bytes under any version of transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kuznia.errors import InputError

_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_CONTROL_TOKEN = 3
"""GGUF's token type of markers such as <|im_start|>."""


def convert(source: Path, target: Path, dtype: str) -> None:
    """Write the model in `source` as a Hugging Face folder `target`, which is made.

    `dtype` names the number format of the written weights. Needs gguf, torch, safetensors and
    tokenizers. Raises InputError for an architecture or tokenizer that this does not know.
    """
    import gguf
    import torch
    from safetensors.torch import save_file

    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _check(source.name, fields)
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    weights = {}
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        values = gguf.dequantize(tensor.data, tensor.tensor_type).copy()
        weight = torch.from_numpy(values).reshape(shape)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = _rotary_halves(weight, heads[part])
        name = _hf_name(source.name, tensor.name)
        weights[name] = weight.to(getattr(torch, dtype)).contiguous()
    target.mkdir(parents=True)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    tied = "lm_head.weight" not in weights
    _write_json(target / "config.json", _config(fields, dtype, tied))
    _write_json(target / "generation_config.json", _special_ids(fields))
    _write_tokenizer(fields, target)


def _check(name: str, fields: dict[str, Any]) -> None:
    found = (
        fields.get("general.architecture"),
        fields.get("tokenizer.ggml.model"),
        fields.get("tokenizer.ggml.pre"),
    )
    if found != ("llama", "gpt2", "smollm"):
        words = "/".join(str(part) for part in found)
        raise InputError(
            f"{name}: architecture and tokenizer {words} are not converted, only "
            "llama/gpt2/smollm is; give a Hugging Face folder as the source"
        )


def _hf_name(place: str, name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _WHOLE:
        return f"{_WHOLE[parts[0]]}.{parts[1]}"
    raise InputError(
        f"{place}: tensor {name} has no place in a Llama; give a Hugging Face folder as the source"
    )


def _rotary_halves(weight: Any, heads: int) -> Any:
    """GGUF interleaves the two rotary halves of each head, Hugging Face keeps them apart."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _config(fields: dict[str, Any], dtype: str, tied: bool) -> dict[str, Any]:
    hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    theta = fields["llama.rope.freq_base"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "max_position_embeddings": fields["llama.context_length"],
        # A float32 number: without rounding 1e-05 reads 9.999999747378752e-06.
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": tied,
        "use_cache": True,
        **_special_ids(fields),
    }


def _special_ids(fields: dict[str, Any]) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {
        f"{ours}_token_id": fields[f"tokenizer.ggml.{its}_token_id"] for ours, its in names.items()
    }


def _write_tokenizer(fields: dict[str, Any], target: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # What the file calls "smollm": digits stand alone. transformers 5.19 leaves that out.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    control = [token for token, kind in kinds if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control]
    )
    tokenizer.save(str(target / "tokenizer.json"))
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    special = {
        f"{ours}_token": tokens[fields[f"tokenizer.ggml.{its}_token_id"]]
        for ours, its in names.items()
    }
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
        },
    )
    (target / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], "utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
