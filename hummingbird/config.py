"""Settings: strict YAML files read into frozen dataclasses, with typed command-line overrides.

A settings class is declared once, with ``config_dataclass``. The class holds types, defaults, documentation
and validators; YAML holds values only; ``tyro`` turns the same class into flags. A setting that nobody reads
is a mistake that nobody sees, so an unknown or repeated key is an error here and never a warning.

    @config_dataclass
    class OptimizerConfig:
        learning_rate: float = 1e-4

    @config_dataclass
    class TrainConfig:
        max_steps: int
        optimizer: OptimizerConfig = OptimizerConfig()

    cfg = load_config(TrainConfig, "train.yaml", ["--optimizer.learning-rate", "1e-5"])
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform, get_args, get_type_hints

import pydantic
import pydantic.dataclasses
import yaml

__all__ = ["ConfigError", "config_dataclass", "load_config", "read_values", "save_config"]

MAX_CONFIG_BYTES = 1_000_000
MAX_DEPTH = 32

T = TypeVar("T")


class ConfigError(ValueError):
    """A settings file or an override that cannot be used; the message is one line that says why."""


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field)
)
def config_dataclass(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only pydantic dataclass that refuses unknown fields.

    Args:
        cls: class with annotated fields; nested settings are fields of other such classes.
    """
    config = pydantic.ConfigDict(extra="forbid")
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    return cast("type[T]", made)


class _StrictLoader(yaml.SafeLoader):
    """``SafeLoader`` that also reads ``1e-5`` as a number (PyYAML alone takes it for text)."""


_StrictLoader.yaml_implicit_resolvers = {
    first: list(rules) for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)

_Location = tuple[str | int, ...]


def _refuse_bombs(text: str) -> None:
    """Refuse the two ways in which a small YAML file takes a reader very long: aliases and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=_StrictLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"line {line}: aliases (*name) are not read; repeat the value")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"line {line}: nested more than {MAX_DEPTH} levels deep; a settings file has a few"
            )


def _index_lines(node: yaml.Node, where: _Location, lines: dict[_Location, int]) -> None:
    """Note the 1-based line of every value below ``node``.

    Raises:
        ConfigError: a mapping has the same key twice, or a key that is not text.
    """
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*where, index)] = item.start_mark.line + 1
            _index_lines(item, (*where, index), lines)
    elif isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"line {line}: a key must be plain text")
            here = (*where, key_node.value)
            if here in lines:
                raise ConfigError(f"line {line}: {_dotted(here)!r} is given twice; keep one of the two")
            lines[here] = line
            _index_lines(value_node, here, lines)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[_Location, int]]:
    """Read one mapping from a YAML file, and the line on which each value stands.

    Raises:
        ConfigError: the file is missing, too large, not UTF-8, not YAML, uses aliases, or is not a mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read it ({error.strerror}); give the path of a YAML file") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"larger than {MAX_CONFIG_BYTES} bytes; a settings file is a few kilobytes of YAML")
    try:
        text = data.decode("utf-8")
        _refuse_bombs(text)
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            lines: dict[_Location, int] = {}
            if node is not None:
                _index_lines(node, (), lines)
            values = loader.construct_document(node) if node is not None else {}
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"holds {type(values).__name__}, expected 'name: value' lines")
    return values, lines


def _dotted(location: _Location) -> str:
    return ".".join(str(part) for part in location) or "(top level)"


def _settings_class(cls: type[Any], location: _Location) -> type[Any] | None:
    """Follow field names from ``cls`` down ``location``; None where that is not one settings class."""
    for part in location:
        hint = get_type_hints(cls).get(str(part))
        options = [option for option in (hint, *get_args(hint)) if dataclasses.is_dataclass(option)]
        if len(options) != 1 or not isinstance(options[0], type):
            return None
        cls = options[0]
    return cls


def _explain(cls: type[Any], error: pydantic.ValidationError, lines: dict[_Location, int]) -> str:
    """Turn pydantic's report into one line: where, what was wrong, what was expected."""
    parts = []
    for item in error.errors(include_url=False):
        location: _Location = item["loc"]
        line = f"line {lines[location]}: " if location in lines else ""
        name = _dotted(location)
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            owner = _settings_class(cls, location[:-1])
            known = [field.name for field in dataclasses.fields(owner)] if owner else []
            close = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            parts.append(f"{line}unknown name {name!r}{hint} (expected: {', '.join(known)})")
        elif item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            parts.append(f"{line}{name!r} is missing and has no default; add it")
        else:
            got = repr(item["input"])
            got = got if len(got) <= 80 else got[:77] + "..."
            parts.append(f"{line}{name!r}: got {got}, {item['msg'][:1].lower()}{item['msg'][1:]}")
    return "; ".join(parts)


def _validate(cls: type[T], values: dict[str, Any], lines: dict[_Location, int]) -> T:
    try:
        text = json.dumps(values)
    except TypeError as error:
        raise ConfigError(
            f"holds a value that is not text, number, true/false, list or mapping ({error})"
        ) from error
    try:
        # JSON mode: strict about types ("3" is not 3), yet lists become tuples and text becomes paths.
        return pydantic.TypeAdapter(cls).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(cls, error, lines)) from error


def load_config(cls: type[T], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> T:
    """Read settings of class ``cls`` from a YAML file, then apply command-line overrides.

    Args:
        cls: a class made with ``config_dataclass``.
        path: YAML file, UTF-8, at most ``MAX_CONFIG_BYTES``; lists one mapping, no aliases, no tags.
        overrides: flags such as ``["--optimizer.learning-rate", "1e-5"]``; every flag takes a value
            (``--ema.enabled False``). ``--help`` lists them all.

    Raises:
        ConfigError: the file cannot be read or does not fit ``cls``; the message names file, line and field.
        SystemExit: status 2 with a message on stderr for a wrong override, 0 after ``--help``.
    """
    path = Path(path)
    try:
        values, lines = _read_yaml(path)
        config = _validate(cls, values, lines)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return _override(cls, config, overrides) if overrides else config


def read_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a settings file as strictly as ``load_config``, for those who do not have its class.

    Raises:
        ConfigError: the file cannot be read; the message begins with its path.
    """
    try:
        return _read_yaml(Path(path))[0]
    except ConfigError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from error


def _override(cls: type[T], config: T, overrides: Sequence[str]) -> T:
    import tyro

    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    try:
        changed: T = tyro.cli(cls, args=list(overrides), default=config, config=markers)
    except pydantic.ValidationError as error:
        raise ConfigError(f"command line: {_explain(cls, error, {})}") from error
    return changed


def save_config(config: Any, path: str | os.PathLike[str]) -> None:
    """Write settings as YAML that ``load_config`` reads back to an equal object.

    Args:
        config: an instance of a class made with ``config_dataclass``.
        path: file to write; replaced in one step, so no reader ever sees half of it.

    Raises:
        ConfigError: a value would not survive the round trip (NaN).
    """
    path = Path(path)
    values = pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")
    _refuse_nan(values, ())
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _refuse_nan(value: Any, where: _Location) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_nan(item, (*where, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_nan(item, (*where, index))
    elif isinstance(value, float) and math.isnan(value):
        raise ConfigError(
            f"{_dotted(where)!r} is NaN, expected a number; a setting must equal itself when read back"
        )
