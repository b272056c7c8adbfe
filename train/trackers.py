"""Where figures go: ``metrics.jsonl``, a tracker where one is installed, and a line on the terminal."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

TrackerName = Literal["auto", "none", "tensorboard", "wandb"]


class _Settings(Protocol):
    @property
    def tracker(self) -> TrackerName: ...


class Metrics:
    """Lines of strict JSON in ``metrics.jsonl``, each also sent to the tracker.

    Args:
        output: run folder.
        step: of the checkpoint that the run goes on from; later lines, of a killed run, are removed.
        config: its ``tracker`` is ``auto`` (tensorboard where installed), ``tensorboard``, ``wandb`` (sends
            figures to a server, so it has to be named) or ``none``.

    Raises:
        RuntimeError: a tracker that was named is not installed.
    """

    def __init__(self, output: Path, step: int, config: _Settings) -> None:
        self.path = output / "metrics.jsonl"
        self._trim(step)
        self.tracker = _tracker(config.tracker, output, step)

    def _trim(self, step: int) -> None:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            part = self.path.with_name(self.path.name + ".part")
            part.write_text("".join(kept))
            part.replace(self.path)
        self.known = [json.loads(line) for line in kept if json.loads(line)["step"] == step]
        self.file = self.path.open("a")

    def log(self, record: dict[str, float]) -> None:
        """Adds a line, unless the run that was resumed wrote it already. JSON has no word for infinity."""
        finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
        if finite in self.known:
            return
        self.file.write(json.dumps(finite) + "\n")
        self.file.flush()
        if self.tracker is not None:
            values = {name: value for name, value in finite.items() if name != "step" and value is not None}
            self.tracker.log(values, int(record["step"]))

    def rewind(self, step: int) -> None:
        """Removes the lines after ``step``."""
        self.file.close()
        self._trim(step)

    def close(self) -> None:
        self.file.close()
        if self.tracker is not None:
            self.tracker.close()


class _TensorBoard:
    def __init__(self, output: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    def __init__(self, output: Path) -> None:
        import wandb

        self.run: Any = wandb.init(project="hummingbird", name=output.name, dir=str(output), resume="allow")

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


def _tracker(name: TrackerName, output: Path, step: int) -> _TensorBoard | _WeightsAndBiases | None:
    if name == "auto":
        name = "tensorboard" if find_spec("tensorboard") else "none"
    if name == "none":
        return None
    if find_spec(name) is None:
        extra = "'hummingbird-t2v[train]'" if name == "tensorboard" else name
        raise RuntimeError(f"loop.tracker: {name} is not installed; pip install {extra}, or set it to none")
    return _TensorBoard(output, step) if name == "tensorboard" else _WeightsAndBiases(output)


_NOT_LOSSES = ("step", "learning_rate", "grad_norm", "examples_per_second", "data_wait", "memory_mb")


def progress_line(values: dict[str, float], steps_per_second: float, max_steps: int) -> str:
    """One line about the steps since the last one.

    Args:
        values: as logged.
        steps_per_second: optimizer steps.
        max_steps: of the run.
    """
    step = int(values["step"])
    shown = [name for name in values if name not in _NOT_LOSSES and "/" not in name]  # no parts of parts
    losses = [f"{name} {values[name]:.4f}" for name in shown]
    seconds = round((max_steps - step) / steps_per_second)
    parts = [
        f"step {step}/{max_steps} " + " ".join(losses),
        f"grad {values['grad_norm']:.3f} lr {values['learning_rate']:.2e}",
        f"{steps_per_second:.2f} it/s, data {values['data_wait']:.0%}, {values['memory_mb']:.0f} MB",
        f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left",
    ]
    return " | ".join(parts)
