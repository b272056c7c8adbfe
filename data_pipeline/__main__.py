"""Curates raw videos into training shards.

python -m data_pipeline run CONFIG.yaml [--input FOLDER|FILE.csv|URL] [--output FOLDER] [--upload URL]
       [--workers N] [--dry-run] [--json] [--debug] [--section.field VALUE ...]
python -m data_pipeline report OUTPUT [--input FOLDER|FILE.csv] [--json] [--debug]

A run that was interrupted or killed goes on where it was when the same command is given again.
Exit status: 0 done, 1 failed (one line on stderr; --debug adds the traceback), 2 bad usage, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hummingbird.manifest import STATUSES

if TYPE_CHECKING:
    from data_pipeline.pipeline import PipelineConfig, Summary

# Worker processes import this module: what is heavy is imported where it is used.

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130


def _answer(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def build_parser() -> argparse.ArgumentParser:
    """The command line without the settings, each of which is a flag, too."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    run = verbs.add_parser(
        "run", help="curate, or go on with a run", add_help=False, allow_abbrev=False, usage=_USAGE
    )
    run.add_argument("config", type=Path, metavar="CONFIG.yaml", help="settings, see configs/data")
    run.add_argument("--dry-run", action="store_true", help="print the plan and touch nothing")
    run.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    run.add_argument("--debug", action="store_true", help="show the traceback of an error")
    run.add_argument("-h", "--help", action="store_true", help="show this help and every setting")
    report = verbs.add_parser("report", help="show what a run did, on one page", allow_abbrev=False)
    report.add_argument("output", type=Path, metavar="OUTPUT", help="folder of a run; gets report.html")
    report.add_argument(
        "--input", type=Path, help="the run's input, if it is not any more where the run read it"
    )
    report.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line of stdout"
    )
    report.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


_USAGE = (
    "python -m data_pipeline run CONFIG.yaml [--input FOLDER|FILE.csv|URL] [--output FOLDER] [--upload URL] "
    "[--engine local|ray] [--workers N] [--dry-run] [--json] [--debug] [--section.field VALUE ...]"
)


def _show_help() -> None:
    import tyro

    from data_pipeline.pipeline import PipelineConfig

    _answer(f"usage: {_USAGE}\n\n{__doc__}\nSettings of the file; each is also a flag:")
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    tyro.cli(PipelineConfig, args=["--help"], prog="python -m data_pipeline run CONFIG.yaml", config=markers)


def _plan(config: PipelineConfig, as_json: bool) -> None:
    from data_pipeline.pipeline import describe

    plan = describe(config)
    for name, value in plan.items():
        if name != "settings":
            _answer(f"{name:<14}{', '.join(value) if isinstance(value, list) else value}")
    for section, values in plan["settings"].items():
        shown = (f"{name} {_short(value)}" for name, value in values.items() if value is not None)
        _answer(f"{section:<14}{', '.join(shown)}")
    if as_json:
        _answer(json.dumps(plan))


def _short(value: Any) -> str:
    return f"({len(value)} values)" if isinstance(value, list) else str(value)


def _report(summary: Summary, as_json: bool) -> None:
    # The frequent reasons of each status first.
    rows = sorted(summary.reasons.items(), key=lambda row: (STATUSES.index(row[0][0]), -row[1], row[0][1]))
    _answer(f"{'status':<9}{'clips':>9}  reason")
    for (status, reason), count in rows:
        _answer(f"{status:<9}{count:>9}  {reason}".rstrip())
    for (source, note), count in sorted(summary.captions.items()):
        _answer(f"{'captions':<9}{count:>9}  {source}{': ' if note else ''}{note}")
    _answer(
        f"{summary.num_rows} rows from {summary.num_sources} sources, {summary.num_shards} shards, "
        f"{summary.seconds:.1f} s, largest worker {summary.worker_peak_mib:.0f} MiB"
    )
    _answer(str(summary.output / "manifest.parquet"))
    if as_json:
        by_status = {
            wanted: sum(count for (status, _), count in rows if status == wanted) for wanted in STATUSES
        }
        reasons = {f"{status}: {reason}".rstrip(": "): count for (status, reason), count in rows}
        _answer(
            json.dumps(
                {
                    "output": str(summary.output),
                    "sources": summary.num_sources,
                    "rows": summary.num_rows,
                    **by_status,
                    "reasons": reasons,
                    "captions": {
                        f"{source}: {note}".rstrip(": "): count
                        for (source, note), count in summary.captions.items()
                    },
                    "alarms": list(summary.alarms),
                    "shards": summary.num_shards,
                    "seconds": round(summary.seconds, 3),
                    "worker_peak_mib": round(summary.worker_peak_mib, 1),
                }
            )
        )


def _write_page(output: Path, input_path: Path | None, as_json: bool) -> None:
    from data_pipeline.report.build import write_report

    summary = write_report(output, input_path)
    for note in summary.notes:
        _say(f"note: {note}")
    counts = ", ".join(f"{count} {status}" for status, count in summary.counts.items())
    _answer(f"{summary.num_rows} rows from {summary.num_sources} sources: {counts}")
    _answer(f"{summary.num_pictures} clips shown, {summary.num_missing} could not be shown")
    _answer(str(summary.path))
    if as_json:
        values = {
            "report": str(summary.path),
            "sources": summary.num_sources,
            "rows": summary.num_rows,
            **summary.counts,
            "pictures": summary.num_pictures,
            "pictures_missing": summary.num_missing,
            "size_bytes": summary.size_bytes,
            "notes": list(summary.notes),
        }
        _answer(json.dumps(values))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words after the program's name; those of the process where left out.

    Returns:
        The exit status.

    Raises:
        SystemExit: status 2 after bad usage, 0 after ``--help``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["run"] and {"-h", "--help"} & set(words):
        _show_help()
    parser = build_parser()
    options, overrides = parser.parse_known_args(words)
    if options.verb == "report" and overrides:
        parser.error(f"report: unknown {overrides[0]!r}; it has --input, --json and --debug")

    from data_pipeline import pipeline
    from hummingbird.config import ConfigError, load_config

    try:
        if options.verb == "report":
            _write_page(options.output, options.input, options.json)
            return 0
        config = load_config(pipeline.PipelineConfig, options.config, overrides)
        if options.dry_run:
            _plan(config, options.json)
        else:
            _report(pipeline.run(config, _say), options.json)
    except KeyboardInterrupt:
        if options.debug:
            raise
        finished = ": everything that was finished is kept; the same command goes on from there"
        _say("interrupted" + (finished if options.verb == "run" else ""))
        return INTERRUPTED
    except Exception as error:  # the outermost boundary: whatever happened becomes one line and a status
        if options.debug:
            raise
        message = " ".join(str(error).split()) or "no message"
        if not isinstance(error, (ValueError, OSError, RuntimeError, ImportError)):
            message = f"{type(error).__name__}: {message} (--debug shows where)"
        _say(f"error: {message}")
        return BAD_USAGE if isinstance(error, ConfigError) else FAILED
    return 0


if __name__ == "__main__":
    status = main()
    # All is written: Ctrl-C while Python puts itself away would turn the status into death by a signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)
