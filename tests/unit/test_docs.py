"""Documentation that cannot lie: links, words of the reference, and the tutorial's commands."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kuznia.contracts.card import Card
from kuznia.contracts.llamafactory import OWNED
from scripts.generate import generated
from workflows.environments import ROOT

PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    if path.name != "0000-template.md"
)
ENGLISH = ROOT / "docs/tutorial/first-model.md"
POLISH = ROOT / "docs/pl/pierwszy-model.md"


def commands(page: Path) -> list[str]:
    """Every command of a page's console blocks, without its comment."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text("utf-8"), re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_both_readmes_and_both_tutorials_have_the_same_commands() -> None:
    assert [line.split()[:3] for line in commands(ROOT / "README.md")][1:] == [
        line.split()[:3] for line in commands(ROOT / "README.pl.md")
    ][1:]
    assert commands(ENGLISH) == commands(POLISH)


def test_generated_files_are_what_their_sources_make() -> None:
    stale = [
        str(path)
        for path, content in generated().items()
        if not (ROOT / path).exists() or (ROOT / path).read_text("utf-8") != content
    ]
    assert stale == [], "run `make generate`"


def test_the_reference_lists_every_owned_key_and_every_card_section() -> None:
    keys = (ROOT / "docs/reference/owned-keys.md").read_text("utf-8")
    assert [key for key in OWNED if f"`{key}`" not in keys] == []
    card = (ROOT / "docs/howto/model-card.md").read_text("utf-8")
    assert [name for name in ("gpai", "risk", "MISSING") if name not in card] == []
    assert "gpai" in Card.model_fields


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs(tmp_path: Path) -> None:
    """Every command of the tutorial in order, with the real model, trainer and server."""
    variables = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
        # Other tests run beside this one: a thread is faster than two that wait for one another.
        "KUZNIA_POD_CPU": "1",
    }
    variables.pop("KUZNIA_HOME")
    folder, said, server = tmp_path, {}, None
    try:
        for command in commands(ENGLISH):
            words = shlex.split(command)
            if words[0] == "cd":
                folder = folder / words[1]
            elif words[1] == "serve":
                with (folder / "serve.log").open("w") as log:
                    server = subprocess.Popen(
                        words, cwd=folder, env=variables, stdout=log, stderr=log
                    )
                _wait_until_it_answers(server, folder / "serve.log")
            else:
                done = subprocess.run(
                    words, cwd=folder, env=variables, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                said[command] = done.stdout
    finally:
        if server:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    (answer,) = [text for command, text in said.items() if command.startswith("kuznia chat")]
    assert "teal" in answer.lower()
    assert "MISSING" in said["kuznia card acme/support"]
    assert "train" in said["kuznia status"]


def _wait_until_it_answers(server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text("utf-8")
        if "/v1" in log.read_text("utf-8"):
            return
        time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text('utf-8')}")
