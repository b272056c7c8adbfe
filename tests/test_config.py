"""Settings files: strict reading, typed overrides, exact round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
import pytest

from hummingbird.config import MAX_CONFIG_BYTES, ConfigError, config_dataclass, load_config, save_config


@config_dataclass
class Optimizer:
    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = pydantic.Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


@config_dataclass
class Train:
    max_steps: int
    mixed: bool = False
    out: Path = Path("runs")
    optimizer: Optimizer = Optimizer()
    sizes: tuple[int, ...] = (1, 2)
    note: str | None = None
    teacher: Optimizer | None = None
    unet: dict[str, int | str | list[int]] = pydantic.Field(default_factory=dict)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_reads_values_and_keeps_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "max_steps: 5\nout: a/b\noptimizer: {learning_rate: 1e-5, betas: [0.5, 0.9]}\nunet: {a: 1}\n",
    )
    cfg = load_config(Train, path)
    assert cfg == Train(
        max_steps=5, out=Path("a/b"), optimizer=Optimizer(learning_rate=1e-5, betas=(0.5, 0.9)), unet={"a": 1}
    )
    with pytest.raises(AttributeError):
        cfg.max_steps = 6  # type: ignore[misc]


def test_overrides_are_typed_and_leave_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "max_steps: 5\nnote: hello\nunet: {a: 1, b: [1, 2]}\n")
    flags = [
        "--optimizer.learning-rate",
        "1e-5",
        "--mixed",
        "True",
        "--sizes",
        "4",
        "5",
        "6",
        "--out",
        "elsewhere",
    ]
    cfg = load_config(Train, path, flags)
    assert cfg.optimizer.learning_rate == 1e-5
    assert cfg.mixed is True
    assert cfg.sizes == (4, 5, 6)
    assert cfg.out == Path("elsewhere")
    assert (cfg.max_steps, cfg.note, cfg.unet) == (5, "hello", {"a": 1, "b": [1, 2]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "max_step: 5\n",
            "line 1: unknown name 'max_step'; did you mean 'max_steps'? (expected: max_steps, mixed",
        ),
        (
            "max_steps: 5\noptimizer:\n  lr: 1\n",
            "line 3: unknown name 'optimizer.lr' (expected: name, learning_rate",
        ),
        ("mixed: true\n", "'max_steps' is missing"),
        ("max_steps: '5'\n", "line 1: 'max_steps': got '5', input should be a valid integer"),
        ("max_steps: 5\nmixed: 1\n", "line 2: 'mixed': got 1, input should be a valid boolean"),
        (
            "max_steps: 5\noptimizer: {name: lion}\n",
            "'optimizer.name': got 'lion', input should be 'adamw' or 'sgd'",
        ),
        ("max_steps: 5\noptimizer: {learning_rate: -1.0}\n", "greater than 0"),
        ("max_steps: 5\nmax_steps: 6\n", "line 2: 'max_steps' is given twice"),
        ("- 1\n- 2\n", "holds list, expected 'name: value' lines"),
        ("max_steps: [1\n", "not valid YAML"),
        ("max_steps: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("max_steps: &a 5\nnote: *a\n", "line 2: aliases"),
        ("max_steps: 2020-01-01\n", "not text, number"),
        ("[" * 20000, "nested more than 32 levels"),
        ("# " + "x" * MAX_CONFIG_BYTES, "larger than"),
    ],
)
def test_a_wrong_file_is_refused_in_one_precise_line(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(Train, path)
    assert expected in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(Train, tmp_path / "none.yaml")


@pytest.mark.parametrize("flags", [["--optimizer.lr", "1"], ["--max-steps", "many"], ["--mixed", "2"]])
def test_a_wrong_flag_is_bad_usage(tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config(Train, write(tmp_path, "max_steps: 5\n"), flags)
    assert stop.value.code == 2


def test_a_flag_meets_the_same_validators_as_the_file(tmp_path: Path) -> None:
    with pytest.raises((SystemExit, ConfigError)) as stop:
        load_config(Train, write(tmp_path, "max_steps: 5\n"), ["--optimizer.learning-rate", "-1"])
    assert stop.type is ConfigError or stop.value.code == 2  # type: ignore[union-attr]


def test_round_trip(tmp_path: Path) -> None:
    cfg = Train(
        max_steps=3,
        optimizer=Optimizer(learning_rate=3e-7),
        teacher=Optimizer(),
        note="é: #",
        unet={"a": [1]},
    )
    save_config(cfg, tmp_path / "deep" / "c.yaml")
    assert load_config(Train, tmp_path / "deep" / "c.yaml") == cfg
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["c.yaml"]


def test_nan_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.betas\.1"):
        save_config(Train(max_steps=3, optimizer=Optimizer(betas=(0.9, float("nan")))), tmp_path / "c.yaml")
    assert not list(tmp_path.iterdir())
