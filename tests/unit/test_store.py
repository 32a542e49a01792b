"""One suite for every kind of store, against real servers where there are some."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kuznia.errors import DependencyError, InputError
from kuznia.manifest import MANIFEST, write_manifest
from kuznia.store import Store, folder_of, open_store, root_and_key
from tests.fixtures.listening import Handler, listening

EMULATED = ["gs"] if os.environ.get("STORAGE_EMULATOR_HOST") else []
"""Kinds of store that only a server from outside can stand in for."""


@pytest.fixture(params=["file", "s3", *EMULATED])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return open_store(str(tmp_path / "store"))
    bucket: str = request.getfixturevalue(f"{request.param}_bucket")
    return open_store(f"{bucket}/some/prefix")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a manifest; one file is larger than a part of an upload."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(os.urandom(9 * 2**20))
    (folder / "sub" / "config.json").write_text("{}")
    write_manifest(folder, "base")
    return folder


def test_a_value_is_read_as_written(store: Store) -> None:
    assert not store.exists("a/b.json")
    with pytest.raises(FileNotFoundError):
        store.read("a/b.json")
    store.write("a/b.json", b"one")
    store.write("a/b.json", b"two")
    assert store.exists("a/b.json")
    assert store.read("a/b.json") == b"two"


def test_cloud_storage_goes_through_the_same_suite(gs_bucket: str) -> None:
    store = open_store(gs_bucket)
    store.write("key", b"value")
    assert store.read("key") == b"value"


def test_only_the_first_creation_wins(store: Store) -> None:
    assert store.create("lock", b"mine")
    assert not store.create("lock", b"yours")
    assert store.read("lock") == b"mine"


def test_everything_has_the_checksum_that_a_locked_bucket_wants(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As AWS refuses it without; no server here does, so what is sent is looked at."""
    seen = {}

    class Bucket(Handler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
            seen[self.path] = self.headers["x-amz-checksum-sha256"] == digest
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.end_headers()

    (tmp_path / "file").write_bytes(b"value")
    with listening(Bucket) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store = open_store("s3://bucket")
        store.write("written", b"value")
        store.create("created", b"value")
        store.put_file(tmp_path / "file", "put")
    assert seen == dict.fromkeys(("/bucket/written", "/bucket/created", "/bucket/put"), True)


def test_of_many_creations_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.create("race", b"%d" % number), range(8)))
    assert sum(won) == 1
    assert store.read("race") == b"%d" % won.index(True)


def test_listing(store: Store) -> None:
    for key in ("runs/acme/one/plan.json", "runs/acme/two/plan.json", "runs/acme-2/x", "runs/y"):
        store.write(key, b"1234")
    assert sorted(store.keys("runs/acme")) == [
        ("runs/acme/one/plan.json", 4),
        ("runs/acme/two/plan.json", 4),
    ]
    assert store.folders("runs") == ["acme", "acme-2"]
    assert store.folders("runs/acme/") == ["one", "two"]
    assert list(store.keys("none")) == []
    assert store.folders("none") == []


def test_a_large_file_comes_back_whole(store: Store, model: Path, tmp_path: Path) -> None:
    store.put_file(model / "weights.bin", "files/weights.bin")
    target = tmp_path / "new" / "weights.bin"
    store.get_file("files/weights.bin", target)
    assert target.read_bytes() == (model / "weights.bin").read_bytes()


def test_a_missing_file_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.get_file("no/such", tmp_path / "out" / "file")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_is_published_once_and_comes_back_checked(
    store: Store, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        store.get_folder("models/m", tmp_path / "copy")
    store.put_folder(model, "models/m")
    copy = store.get_folder("models/m", tmp_path / "copy")
    assert (copy / "sub" / "config.json").read_text() == "{}"
    assert store.folders("models") == ["m"]
    first = store.read(f"models/m/{MANIFEST}")
    (model / "sub" / "config.json").write_text('{"other": 1}')
    write_manifest(model, "base")
    store.put_folder(model, "models/m")
    assert store.read(f"models/m/{MANIFEST}") == first


def test_a_folder_that_differs_from_its_manifest_is_not_published(
    store: Store, model: Path
) -> None:
    (model / "sub" / "config.json").write_text("changed")
    with pytest.raises(InputError, match=r"config.json: differs from the manifest"):
        store.put_folder(model, "models/m")
    assert list(store.keys("models")) == []


def test_a_changed_file_in_the_store_is_noticed(store: Store, model: Path, tmp_path: Path) -> None:
    store.put_folder(model, "models/m")
    store.write("models/m/sub/config.json", b"[]")
    with pytest.raises(InputError, match=r"config.json: differs from the manifest"):
        store.get_folder("models/m", tmp_path / "copy")


def test_an_interrupted_download_goes_on_where_it_stopped(
    s3_bucket: str, model: Path, tmp_path: Path
) -> None:
    store = open_store(s3_bucket)
    store.put_folder(model, "models/m")
    copy = store.get_folder("models/m", tmp_path / "copy")
    (copy / "sub" / "config.json").unlink()
    kept = (copy / "weights.bin").stat()
    store.get_folder("models/m", copy)
    assert (copy / "weights.bin").stat().st_mtime_ns == kept.st_mtime_ns
    assert (copy / "sub" / "config.json").exists()


def test_what_killed_and_parallel_downloads_leave_hinders_no_other(
    s3_bucket: str, model: Path, tmp_path: Path
) -> None:
    """A cache that pods share: one was killed on the way, two fetch at once."""
    store, target = open_store(s3_bucket), tmp_path / "cache" / "m"
    store.put_folder(model, "models/m")
    seen: list[Path] = []

    def killed(key: str, start: int = 0) -> Iterator[bytes]:
        yield b"half"
        seen.extend((tmp_path / "cache").rglob(".partial-*"))
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "stream", killed)
        # Killed for good, a process would not remove it.
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            store.get_folder("models/m", target)
    assert len(seen) == 1 and seen[0].exists()
    with ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(store.get_folder, "models/m", target) for _ in range(2)]
        assert {each.result() for each in tries} == {target}
    os.utime(seen[0], (0, 0))
    store.get_folder("models/m", target)
    assert not seen[0].exists()


def test_a_download_goes_on_as_long_as_anything_comes(
    s3_bucket: str, model: Path, tmp_path: Path
) -> None:
    """As one that takes longer than a store's answer may."""
    store = open_store(s3_bucket)
    store.put_file(model / "weights.bin", "large")
    whole, starts = store.stream, []

    def short(key: str, start: int = 0) -> Iterator[bytes]:
        starts.append(start)
        yield next(whole(key, start))[: 2**20]
        if len(starts) < 5:
            raise DependencyError("the answer broke off")
        yield from whole(key, start + 2**20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "stream", short)
        store.get_file("large", tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == (model / "weights.bin").read_bytes()
    assert starts == [number * 2**20 for number in range(5)]

    def silent(key: str, start: int = 0) -> Iterator[bytes]:
        raise DependencyError("nothing came")
        yield b""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "stream", silent)
        with pytest.raises(DependencyError, match="nothing came"):
            store.get_file("large", tmp_path / "other")
    assert [path.name for path in tmp_path.glob("*large*")] == ["large"]


def test_what_a_killed_process_left_is_swept_once_it_is_old(tmp_path: Path, model: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    old, new = (tmp_path / "store" / "models" / f".partial-{name}-v1" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(b"half")
    os.utime(old, (0, 0))
    store.put_folder(model, "models/v2")
    assert not old.exists()
    assert new.exists()
    assert store.folders("models") == ["v2"]


def test_a_removed_folder_is_gone(store: Store, model: Path) -> None:
    store.put_folder(model, "models/m")
    store.remove_folder("models/m")
    assert list(store.keys("models/m")) == []
    assert not store.exists(f"models/m/{MANIFEST}")


def test_uris_name_what_they_say(store: Store) -> None:
    assert store.uri_of("a/b") == f"{store.uri}/a/b"
    store.write("a/b", b"1")
    local = store.local_path("a/b")
    assert local is None or local.read_bytes() == b"1"


def test_a_folder_with_spaces_and_polish_letters(tmp_path: Path) -> None:
    home = tmp_path / "moje dane" / "źródła"
    store = open_store(home.as_uri())
    store.write("a.txt", b"1")
    assert (home / "a.txt").read_bytes() == b"1"
    assert store.local_path("a.txt") == home / "a.txt" == folder_of((home / "a.txt").as_uri())


def test_what_is_not_a_store_is_refused() -> None:
    with pytest.raises(InputError, match="'ftp://host' is not a store; use a folder, file://"):
        open_store("ftp://host")


def test_a_server_that_is_away_is_a_dependency(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = Store(s3_bucket, _impatient(s3_bucket))
    with pytest.raises(DependencyError, match=rf"{s3_bucket}/key: .*; check the store's address"):
        store.read("key")


def _impatient(uri: str) -> object:
    from datetime import timedelta

    from obstore.store import from_url

    return from_url(uri, retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)})


def test_a_bucket_that_is_not_there(s3_bucket: str) -> None:
    store = open_store(f"{s3_bucket}-other/prefix")
    for write in (store.write, store.create):
        with pytest.raises(DependencyError, match="there is no such bucket; make it or correct"):
            write("key", b"value")


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="there is no /dev/full here; run this test on Linux"
)
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.write("key", b"value")
    (tmp_path / "target").mkdir()
    with (
        pytest.raises(DependencyError, match="no space left; free some and run the same command"),
        store._answers("key"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"1")


@pytest.mark.parametrize(
    "root", ["s3://bucket", "s3://bucket/models/prod", "file:///srv/models/acme/bases/store"]
)
@pytest.mark.parametrize(
    "key",
    ["models/acme/support/abcdef012345", "models/bases/models/abcdef012345", f"bases/b/{'1' * 64}"],
)
def test_the_end_of_a_uri_tells_store_from_key(root: str, key: str) -> None:
    assert root_and_key(f"{root}/{key}") == (root, key)


def test_a_uri_of_another_layout_is_refused() -> None:
    with pytest.raises(InputError, match=r"^s3://bucket/models/support: ends neither in models/"):
        root_and_key("s3://bucket/models/support")
