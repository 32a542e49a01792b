"""The group `kuznia`: finds commands by file name and turns failures into exit codes."""

from __future__ import annotations

import ast
import functools
import importlib
import os
from pathlib import Path

import click

from cli.output import print_error
from kuznia import __version__
from kuznia.errors import InputError, KuzniaError

ORDER = ("init", "check", "run", "status", "logs", "runs", "show", "card", "serve", "chat", "ui")
"""The order of a first day; commands not named here follow by name."""


class Commands(click.Group):
    """Loads a command's file when that command is called, and not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = _lines()
        return [n for n in ORDER if n in names] + sorted(n for n in names if n not in ORDER)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _lines():
            return None
        command: click.Command = importlib.import_module(f"cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _lines():
            raise InputError(
                f"kuznia {args[0]}: no such command; choose one of "
                f"{', '.join(self.list_commands(ctx))}"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = _lines()
        with formatter.section("Commands"):
            formatter.write_dl([(name, lines[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KuzniaError as error:
            for problem in error.problems if isinstance(error, InputError) else [str(error)]:
                print_error(problem)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)


@functools.cache
def _lines() -> dict[str, str]:
    """Every command with the first line of its file's docstring, read without importing it."""
    found = {}
    for path in Path(__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        if "command" in {name for node in tree.body for name in _names(node)}:
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


@click.command(
    cls=Commands,
    epilog="example: kuznia init && kuznia run train.yaml",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="kuznia")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Fine-tune a language model, prove what it is, and serve it."""
    if "NO_COLOR" in os.environ:
        ctx.color = False


if __name__ == "__main__":
    main(prog_name="kuznia")
