"""The audit log in a bucket under S3 Object Lock: not even its owner removes or rewrites it."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from kuznia.audit.keys import private_key
from kuznia.audit.lifecycle import Operator
from kuznia.audit.verify import LEAST_DAYS, verify
from kuznia.errors import DependencyError
from tests.e2e.cluster import S3
from tests.e2e.conftest import S3_SETTINGS
from tests.fixtures.audit_case import Place, lines


def test_what_is_shipped_stays_as_it_was(
    s3: S3, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"{mark}-audit"
    keys = s3.account(bucket, locked_days=LEAST_DAYS)
    for name, value in (S3_SETTINGS | keys | {"AWS_ENDPOINT_URL": s3.here}).items():
        monkeypatch.setenv(name, value)
    place = Place(tmp_path, f"s3://{bucket}")
    for identity in ("a", "b"):
        place.put(lines(identity))
        place.collect()
    assert [each.id for each in place.records()] == ["a", "b"]
    shipped = {key: place.store.read(key) for key, _ in place.store.keys("audit")}
    assert len(shipped) == 4
    with closing(s3.client(keys)) as owner:
        for key in shipped:
            with pytest.raises(ClientError, match="AccessDenied"):
                owner.delete_object(Bucket=bucket, Key=key)
            with pytest.raises(ClientError, match="AccessDenied"):
                owner.put_object(Bucket=bucket, Key=key, Body=b"another")
    # By the law's time our own retention would remove them; the store's clock decides.
    operator = Operator(
        place.store, private_key(place.key), "ola", lambda: time.time() + 86400 * (LEAST_DAYS + 1)
    )
    with pytest.raises(DependencyError, match="audit/acme/laptop"):
        operator.retention("acme", LEAST_DAYS)
    assert {key: place.store.read(key) for key in shipped} == shipped
    assert verify(place.store, [private_key(place.key).public_key()]).findings == []
