"""The `d4c` program: its commands, and how it ends."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

import d4c
from d4c.cli.analyze import analyze
from d4c.cli.bench import bench
from d4c.cli.classify import classify
from d4c.cli.compare import compare
from d4c.cli.evaluate import evaluate
from d4c.cli.export import export
from d4c.cli.inspect import inspect
from d4c.cli.models import models
from d4c.cli.quantize import quantize
from d4c.cli.recipes import recipes
from d4c.cli.reproduce import reproduce
from d4c.cli.synthesize import synthesize
from d4c.cli.verify import verify
from d4c.errors import D4CError, UsageError

FAILED, INTERRUPTED = 1, 130

app = typer.Typer(
    help="Quantize CLIP models to integers without a single real image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS = (quantize, synthesize, evaluate, export, verify, bench, classify, inspect, models, recipes, compare, analyze)
for command in COMMANDS:
    app.command()(command)
# Its flags are the paper's, read by a parser of its own.
app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    reproduce
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"d4c {d4c.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Quantize CLIP models to integers without a single real image."""


def main() -> None:
    """Run a command; every error that is not a bug is one line on stderr and an exit code."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        _end("interrupted", INTERRUPTED)
    except UsageError as error:
        if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":  # the first says it for all
            sys.exit(error.exit_code)
        _end(str(error), error.exit_code)
    except D4CError as error:
        _end(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(FAILED)
    except OSError as error:  # a full disk, a file taken away
        _end(f"{error.filename or 'input or output'}: {error.strerror or error}", FAILED)
    except Exception as error:
        if hasattr(error, "format_message"):  # how the command line's own library says that arguments are wrong
            _end(error.format_message(), 2)
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU; torch itself may not be loaded here
            _end(f"the device's memory is too small: {error}", FAILED)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> None:
    if os.environ.get("D4C_DEBUG") == "1":
        traceback.print_exc()
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
