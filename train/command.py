"""What the entry points share: usage, settings from a file and from flags, errors as one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from hummingbird.config import ConfigError, load_config
from train.loop import Terminated

T = TypeVar("T")

FAILED, BAD_USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def read_settings(cls: type[T], argv: Sequence[str], prog: str, description: str | None) -> T:
    """Settings of class ``cls`` from ``CONFIG.yaml [--field.name VALUE ...]``.

    Args:
        cls: a class made with ``config_dataclass``.
        argv: the words after ``prog``.
        prog: what the user typed before them.
        description: the first part of ``--help``.

    Raises:
        ConfigError: the file cannot be used.
        SystemExit: status 2 for bad usage, 0 after ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} CONFIG.yaml [--field.name VALUE ...] [--debug]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="settings, see configs/")
    if {"-h", "--help"} & set(argv):
        sys.stdout.write(parser.format_help() + "\nSettings of the file; each is also a flag:\n")
        markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
        tyro.cli(cls, args=["--help"], prog=f"{prog} CONFIG.yaml", config=markers)
    arguments, overrides = parser.parse_known_args(argv)
    return load_config(cls, arguments.config, overrides)


def run_command(function: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> int:
    """Calls ``function`` with the command line; whatever goes wrong becomes one line and a status.

    Args:
        function: does the work.
        argv: words after the program's name; those of the process where left out. ``--debug`` is taken out
            of them and shows tracebacks.

    Returns:
        0 done, 1 failed, 2 settings that cannot be used, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SystemExit: status 2 for bad usage, 0 after ``--help``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        function([word for word in words if word != "--debug"])
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("interrupted: the last checkpoint stands; the same command goes on from there\n")
        return INTERRUPTED
    except Terminated as end:
        sys.stderr.write(f"terminated: {end}\n")
        return TERMINATED
    except Exception as error:  # the outermost boundary
        if debug:
            raise
        message = " ".join(str(error).split()) or "no message"
        if not isinstance(error, (ValueError, OSError, RuntimeError, ArithmeticError)):
            message = f"{type(error).__name__}: {message} (--debug shows where)"
        sys.stderr.write(f"error: {message}\n")
        return BAD_USAGE if isinstance(error, ConfigError) else FAILED
    return 0
