"""What a run leaves on disk, whole or not at all: folders, checkpoints and which of them are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.distributed.checkpoint.api import CheckpointException


def write_json(path: Path, value: Any) -> None:
    """Replaces ``path`` in one step."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete; after an error or Ctrl-C nothing of it is left."""
    part = final.with_name(final.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    discard(final)
    part.rename(final)


def discard(folder: Path) -> None:
    """Removes a folder; a process that is killed meanwhile leaves nothing that passes for a whole one."""
    if folder.exists():
        doomed = folder.with_name(folder.name + ".old.part")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def remove_left_overs(output: Path) -> None:
    """Removes what a killed process had not finished."""
    for parent in (output, output / "checkpoints", output / "samples"):
        for left_over in parent.glob("*.part"):
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return _steps(output / "checkpoints")


def sample_folders(output: Path) -> list[Path]:
    """Complete samples of a run, oldest first."""
    return _steps(output / "samples")


def _steps(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step-*") if p.suffix != ".part"), key=step_of)


def step_of(folder: Path) -> int:
    """Of ``step-N``."""
    return int(folder.name.removeprefix("step-"))


def save_checkpoint(
    accelerator: Accelerator,
    output: Path,
    step: int,
    keep: int,
    spared: set[int],
    save_state: Callable[[Path], None],
) -> None:
    """Writes beside the final name and renames, so a killed run never leaves half a checkpoint.

    Args:
        accelerator: of the run; every process calls this.
        output: run folder.
        step: optimizer steps done.
        keep: how many of the newest checkpoints stay.
        spared: steps whose checkpoints stay as well.
        save_state: writes the state into a folder, on every process.
    """
    final = output / "checkpoints" / f"step-{step}"
    with whole_folder(final) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        save_state(Path(str(final) + ".part"))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_json(Path(str(final) + ".part") / "step.json", {"step": step})
    if accelerator.is_main_process:
        for old in checkpoints(output)[:-keep]:
            if step_of(old) not in spared:
                discard(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, load_state: Callable[[Path], None]) -> int:
    """Restores everything that was saved, by ``load_state``; returns the step.

    Raises:
        RuntimeError: the checkpoint is of another network or optimizer.
    """
    try:
        load_state(checkpoint)
    except (RuntimeError, ValueError, KeyError, CheckpointException) as error:
        raise RuntimeError(
            f"checkpoint {checkpoint}: does not fit this network ({' '.join(str(error).split())[:200]}); "
            "give another --loop.output, or delete the folder to start again"
        ) from error
    # Checkpoints lie between optimizer steps. The saved count of micro-steps is one of the old number of
    # processes, and with another one gradients would be applied in the middle of a step.
    accelerator.step = 0
    return int(json.loads((checkpoint / "step.json").read_text())["step"])


def read_best(output: Path) -> dict[str, Any] | None:
    """``{"step", "metric", "value"}`` of the best checkpoint so far; None where there is none."""
    path = output / "checkpoints" / "best.json"
    return json.loads(path.read_text()) if path.is_file() else None


def write_best(output: Path, step: int, metric: str, value: float) -> None:
    path = output / "checkpoints" / "best.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"step": step, "metric": metric, "value": value})
