"""The table of releases in parts: nothing lost, nothing of a tenant in two places, small enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuznia.contracts.tenant import Access
from kuznia.errors import InputError
from kuznia.gateway.shards import PARTS, merged, part_of, read_tables, shards, text_of
from kuznia.gateway.table import Table, Target

NAMES = st.sampled_from([f"tenant-{number}" for number in range(30)])


def target(tenant: str, model: str = "support", stage: str = "production") -> Target:
    return Target.model_validate(
        {
            "tenant": tenant,
            "model": model,
            "stage": stage,
            "version": "3f9a6c0d1e2b",
            "digest": "3f9a6c0d1e2b" + "0" * 52,
            "risk": "limited",
            "address": f"{model}-{stage}.{tenant}-inference.svc:8000",
            "guard": "default",
            "limited": ["requests_per_minute"],
        }
    )


def limits(tenant: str) -> dict[str, object]:
    rate = {"name": "requests_per_minute", "unit": "minute", "requests_per_unit": 10}
    entry = {"key": "what", "value": "requests_per_minute", "rate_limit": rate}
    return {"key": "tenant", "value": tenant, "descriptors": [entry]}


@st.composite
def tables(draw: st.DrawFn) -> Table:
    models = st.tuples(NAMES, st.sampled_from(["a", "b"]), st.sampled_from(["staging"]))
    opened = st.dictionaries(NAMES, st.just(("production",)), min_size=1, max_size=4)
    return Table(
        targets=tuple(target(*each) for each in draw(st.sets(models, max_size=20))),
        hosts={f"{name}.example.org": name for name in draw(st.sets(NAMES))},
        groups=draw(st.dictionaries(st.sampled_from(["ops", "science", "ł"]), opened)),
        access=draw(st.sampled_from([Access(), Access(hosts=("llm.example.org",))])),
        limits=tuple(limits(name) for name in draw(st.sets(NAMES, max_size=8))),
    )


@settings(max_examples=60, deadline=None)
@given(tables())
def test_parts_make_the_table_again_and_each_tenant_is_in_one(table: Table) -> None:
    parts = {name: Table.model_validate_json(text_of(p)) for name, p in shards(table).items()}
    assert merged(parts.values()) == merged(reversed(parts.values())) == merged([table])
    assert parts.pop("access") == Table(access=table.access)
    for name, part in parts.items():
        tenants = {each.tenant for each in part.targets} | set(part.hosts.values())
        tenants |= {tenant for opened in part.groups.values() for tenant in opened}
        tenants |= {str(entry["value"]) for entry in part.limits}
        assert tenants
        assert {part_of(tenant) for tenant in tenants} == {name}
    assert len(parts) <= PARTS


def test_a_thousand_tenants_with_ten_releases_each_fit_their_config_maps() -> None:
    targets = [
        target(f"tenant-{tenant:04}", f"model-{model}", stage)
        for tenant in range(1000)
        for model in range(5)
        for stage in ("staging", "production")
    ]
    entries = tuple(limits(f"tenant-{number:04}") for number in range(1000))
    table = Table(targets=tuple(targets), limits=entries)
    assert max(len(text_of(part).encode()) for part in shards(table).values()) < 600_000


def test_a_release_is_one_line() -> None:
    table = Table(targets=(target("acme"), target("acme", "chat")))
    lines = text_of(table).splitlines()
    assert json.loads(lines[1].rstrip(","))["model"] == "support"
    assert [line.count('"digest"') for line in lines] == [0, 1, 1]


def test_a_folder_is_read_again_when_a_file_changes(tmp_path: Path) -> None:
    table = merged([Table(targets=(target("acme"), target("beta")), access=Access())])
    for name, part in shards(table).items():
        (tmp_path / f"{name}.json").write_text(text_of(part), "utf-8")
    found = read_tables(tmp_path)
    assert found == table
    assert read_tables(tmp_path) is found
    part = tmp_path / f"{part_of('beta')}.json"
    newer = tmp_path / ".newer"
    newer.write_text("{}", "utf-8")
    newer.replace(part)
    assert [each.tenant for each in read_tables(tmp_path).targets] == ["acme"]


def test_what_is_no_table_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="put the table there"):
        read_tables(tmp_path)
    (tmp_path / "0.json").write_text("{", "utf-8")
    (tmp_path / "1.json").write_text('{"targest": []}', "utf-8")
    (tmp_path / "2.json").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="No such file"):
        read_tables(tmp_path)
    (tmp_path / "2.json").unlink()
    with pytest.raises(InputError) as caught:
        read_tables(tmp_path)
    first, second = caught.value.problems
    assert "0.json: is no JSON" in first
    assert "1.json: targest: is not a key here" in second
