"""A training recipe as the plan reads it: values by name, with the defaults of the training code.

The settings classes live beside the training code, which this package does not import; the few that matter
here are read by name, with the same defaults (tests hold them equal).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from hummingbird.config import ConfigError, read_values

__all__ = ["DEFAULTS", "PRECISIONS", "Device", "Kind", "Recipe", "read_changes", "read_recipe"]

Device = Literal["cpu", "gpu"]
Kind = Literal["stage1", "stage2", "teacher", "vae", "decoder"]

DEFAULTS: dict[str, Any] = {
    "batch_size": 16,
    "gradient_accumulation_steps": 1,
    "target_global_batch": None,
    "gradient_checkpointing": False,
    "optimizer": "adamw",
    "mixed_precision": "no",
    "max_steps": 1000,
    "sample_every": 0,
}
"""Of ``loop:``, where a recipe leaves them out; the other parts have theirs where they are read."""
STAGE1_KEYS = {
    "loop",
    "teacher",
    "student",
    "latents",
    "num_frames",
    "caption_dropout",
    "num_sample_prompts",
    "sample_prompts",
    "num_sample_steps",
    "sample_batch_size",
    "diffusion",
    "distillation",
}
"""Of a recipe of stage 1; one with others is another stage's."""
STAGE2_DEFAULTS: dict[str, Any] = {
    "teacher": "nano-teacher",
    "latents": None,
    "num_frames": 16,
    "rewards": (),
    "held_out": (),
    "layout": (),
    "reward_steps": (),
    "reward_batch_size": 0,
    "decode_chunk_size": 1,
    "teacher_dtype": "auto",
    "offload_teacher": False,
    "num_sample_prompts": 16,
    "sample_prompts": (),
    "sample_batch_size": 0,
}
"""Of a recipe of stage 2, where it leaves them out."""
STAGE2_STUDENT: dict[str, Any] = {
    "model": None,
    "time_cond_proj_dim": 256,
    "lora_rank": 0,
    "lora_dropout": 0.1,
}
"""Of its ``student:``."""
STAGE2_REWARD: dict[str, Any] = {"checkpoint": None, "dtype": "float32", "weight": 1.0, "num_frames": None}
"""Of each of its ``rewards:``."""
STAGE2_KEYS = {*STAGE2_DEFAULTS, "loop", "student", "consistency", "call", "num_reference_steps"}
"""Of a recipe of stage 2."""
PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
_PARTS = ("loop", "student", "distillation", "unet", "consistency")
_CHANGEABLE = {
    *(f"loop.{name}" for name in DEFAULTS),
    *STAGE2_DEFAULTS,
    *(f"student.{name}" for name in STAGE2_STUDENT),
    *(f"{group}.{name}" for group in ("rewards", "held_out") for name in STAGE2_REWARD),
    "student.plan",
    "consistency.target",
    "distillation.teacher_dtype",
    "distillation.offload_teacher",
    "distillation.guidance_scale",
}


@dataclass
class Recipe:
    """A recipe's values, and what had to be taken for granted."""

    values: Mapping[str, Any]
    kind: Kind
    notes: list[str] = field(default_factory=list)

    def loop(self, name: str) -> Any:
        """A setting of the loop, or its default."""
        return self.part("loop").get(name, DEFAULTS[name])

    def part(self, name: str) -> Mapping[str, Any]:
        """A group of settings; empty where the recipe has none."""
        return self.values.get(name) or {}

    def stage2(self, name: str) -> Any:
        """A setting of stage 2, or its default."""
        value = self.values.get(name, STAGE2_DEFAULTS[name])
        return () if value is None and STAGE2_DEFAULTS[name] == () else value

    @property
    def num_sampled(self) -> int:
        """Sample videos that are made at once; 0 for none."""
        videos = len(self.values.get("sample_prompts") or ()) or int(
            self.values.get("num_sample_prompts", 16)
        )
        return min(videos, int(self.values.get("sample_batch_size") or 0) or videos)

    @property
    def is_guarded(self) -> bool:
        """Whether a guard compares samples with the teacher's."""
        return (self.part("loop").get("guard") or {}).get("action", "off") not in ("off", False)

    def accumulation(self, num_processes: int) -> int:
        """Micro-steps per optimizer step.

        Raises:
            ConfigError: the processes cannot make the global batch.
        """
        target = self.loop("target_global_batch")
        if target is None:
            return int(self.loop("gradient_accumulation_steps"))
        at_once = int(self.loop("batch_size")) * num_processes
        if target % at_once:
            raise ConfigError(
                f"target_global_batch: got {target}, expected a multiple of {at_once} (batch_size x "
                f"{num_processes} processes)"
            )
        return int(target) // at_once


def read_recipe(path: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: its YAML file.
        changes: values by dotted name, such as ``student.lora_rank`` or ``rewards.0.dtype``, in place of the
            file's.

    Raises:
        ConfigError: not a recipe that can be planned, or a change of what a plan does not read.
    """
    values = read_values(path)
    for name in _PARTS:
        if not isinstance(values.get(name) or {}, dict):
            raise ConfigError(f"{path}: {name}: expected settings, 'name: value' lines")
    for name, kind in (("rewards", dict), ("held_out", dict), ("layout", list), ("reward_steps", int)):
        given = values.get(name) or []
        if not isinstance(given, list) or not all(isinstance(entry, kind) for entry in given):
            raise ConfigError(f"{path}: {name}: expected a list, as docs/settings.md describes it")
    for name, value in (changes or {}).items():
        values = _changed(values, name, value)
    recipe = Recipe(values=values, kind=_kind(values))
    if recipe.loop("mixed_precision") not in PRECISIONS:
        raise ConfigError(
            f"{path}: loop.mixed_precision: got {recipe.loop('mixed_precision')!r}, expected one of "
            f"{', '.join(PRECISIONS)}"
        )
    return recipe


def read_changes(words: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words as ``read_recipe`` takes them; values as in YAML.

    Raises:
        ConfigError: a word without a name or with a value that is no YAML.
    """
    changes = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not name or not separator:
            raise ConfigError(f"--set: got {word!r}, expected NAME=VALUE")
        try:
            changes[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set: {name}: {text!r} is no value ({type(error).__name__})") from error
    return changes


def _changed(values: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    keys = name.replace("-", "_").split(".")
    if ".".join(key for key in keys if not key.isdigit()) not in _CHANGEABLE:
        raise ConfigError(
            f"{name}: a plan does not read it; expected one of {', '.join(sorted(_CHANGEABLE))} (rewards by "
            "number, such as rewards.0.dtype)"
        )
    values = copy.deepcopy(values)
    place: Any = values
    try:
        for key in keys[:-1]:
            if isinstance(place, dict) and place.get(key) is None:
                place[key] = {}
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[keys[-1]] = value
    except (IndexError, ValueError, TypeError, KeyError):
        raise ConfigError(f"{name}: the recipe has no such entry") from None
    return values


def _kind(values: Mapping[str, Any]) -> Kind:
    keys = set(values)
    if keys & (STAGE2_KEYS - STAGE1_KEYS):
        if unknown := keys - STAGE2_KEYS:
            raise ConfigError(
                f"plan: got a recipe with {', '.join(sorted(unknown))}, which stage 2 does not have"
            )
        return "stage2"
    if keys & {"teacher", "student", "distillation"}:
        if unknown := keys - STAGE1_KEYS:
            raise ConfigError(
                f"plan: got a recipe with {', '.join(sorted(unknown))}, which stage 1 does not have"
            )
        return "stage1"
    if {"vae", "text", "latents"} <= keys:
        return "teacher"
    if {"vae", "latents", "loop"} <= keys:
        return "decoder"
    if keys & {"kl_weight", "block_out_channels", "layers_per_block"}:
        return "vae"
    raise ConfigError(
        f"plan: got a recipe with {', '.join(sorted(keys)) or 'nothing'}, expected one of train/stage1.py, "
        "train/stage2.py, train/teacher.py, or train/nano.py vae or decoder"
    )
