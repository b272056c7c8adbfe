"""Strict mapping of a foreign state dict onto one of our modules: every key has its place, or nothing loads.

Tensors are handled as recipes, of which only the shape and the type are known until one is asked for, so that
a checkpoint can be compared, converted and loaded one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

_MAX_LISTED = 8


@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from.

    Args:
        key: Key in the foreign state dict.
        part: Which of ``parts`` equal slices along the first axis it is.
        parts: How many slices the foreign tensor holds.
    """

    key: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A tensor that is read or computed when it is asked for.

    Args:
        shape: Its shape.
        dtype: Its type.
        load: Makes it; the result is contiguous and nobody else's.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()

    @property
    def size_bytes(self) -> int:
        """Bytes of its numbers."""
        return self.num_elements * self.dtype.itemsize

    def cast(self, dtype: torch.dtype | None) -> Recipe:
        """The same numbers in another type; None keeps the type. Whole numbers and truth values stay."""
        if dtype is None or dtype == self.dtype or not self.dtype.is_floating_point:
            return self
        return replace(self, dtype=dtype, load=lambda: self.load().to(dtype))

    def reshape(self, shape: tuple[int, ...]) -> Recipe:
        """The same numbers in another shape."""
        return (
            self
            if shape == self.shape
            else replace(self, shape=shape, load=lambda: self.load().reshape(shape))
        )


def recipe_of(tensor: torch.Tensor) -> Recipe:
    """A recipe that copies a tensor which is in memory already."""
    return Recipe(
        shape=tuple(tensor.shape), dtype=tensor.dtype, load=lambda: tensor.detach().clone().contiguous()
    )


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """How the keys of a file and those of a network fit.

    Args:
        missing: Keys that the network needs and the file lacks.
        unexpected: Keys of the file that nothing is known about.
        mismatched: ``key is (found), expected (expected)``: cannot be loaded.
        reshaped: ``key (found) -> (expected)``: the same numbers in another shape, as a 1x1 convolution and a
            linear layer have.
        unused: Keys of the file that are known to have no effect.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def problems(self) -> str:
        """What keeps the file from being loaded, for a message; empty where nothing does."""
        listed = [
            *_listed("missing", self.missing),
            *_listed("unexpected", self.unexpected),
            *_listed("of another shape", self.mismatched),
        ]
        return "; ".join(listed)

    def with_prefix(self, prefix: str) -> KeyReport:
        """The same report with ``prefix`` before every key."""
        names = ("missing", "unexpected", "mismatched", "reshaped", "unused")
        return KeyReport(**{name: tuple(prefix + key for key in getattr(self, name)) for name in names})


def map_keys(
    model: nn.Module,
    sources: Mapping[str, Source],
    stored: Mapping[str, Recipe],
    *,
    ignored: Collection[str] = (),
) -> tuple[dict[str, Recipe], KeyReport]:
    """Say where every tensor of ``model`` comes from; nothing is read.

    Args:
        model: Our module; its parameters may be on the meta device.
        sources: For every key of the model's state dict, where it comes from.
        stored: The foreign tensors.
        ignored: Foreign keys that are known to be without effect.

    Returns:
        A recipe for each of our keys that can be made, and the report of all that cannot.
    """
    needed = {source.key for source in sources.values()}
    targets = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    recipes: dict[str, Recipe] = {}
    mismatched: dict[str, None] = {}
    reshaped: dict[str, None] = {}
    for target_key, source in sources.items():
        if source.key not in stored:
            continue
        recipe, shape = stored[source.key], targets[target_key]
        expected = (shape[0] * source.parts, *shape[1:]) if source.parts > 1 else shape
        if _without_trailing_ones(recipe.shape) != _without_trailing_ones(expected):
            mismatched[f"{source.key} is {recipe.shape}, expected {expected}"] = None
            continue
        if recipe.shape != expected:
            reshaped[f"{source.key} {recipe.shape} -> {expected}"] = None
        recipes[target_key] = _slice(recipe, source).reshape(shape)
    report = KeyReport(
        missing=tuple(sorted(needed - stored.keys())),
        unexpected=tuple(sorted(stored.keys() - needed - set(ignored))),
        mismatched=tuple(sorted(mismatched)),
        reshaped=tuple(sorted(reshaped)),
        unused=tuple(sorted(stored.keys() & set(ignored))),
    )
    return recipes, report


def fill(model: nn.Module, recipes: Mapping[str, Recipe], dtype: torch.dtype | None) -> None:
    """Give a model on the meta device its weights, one tensor at a time; None keeps each tensor's type."""
    loaded = {key: recipe.cast(dtype).load() for key, recipe in recipes.items()}
    model.load_state_dict(loaded, strict=True, assign=True)


def load_mapped(
    model: nn.Module,
    sources: Mapping[str, Source],
    state_dict: Mapping[str, torch.Tensor],
    *,
    name: str,
    ignored: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Fill ``model`` (its parameters may be on the meta device) from ``state_dict``.

    Args:
        model: Receives copies of the tensors; the given ones are not aliased.
        sources: For every key of the model's state dict, where it comes from.
        state_dict: The foreign tensors.
        name: What is being loaded, for messages.
        ignored: Foreign keys that are known to be unused.
        dtype: Type of the loaded parameters.

    Raises:
        ValueError: Where a key is missing, over, or of another shape; the message names them.
    """
    stored = {key: recipe_of(tensor) for key, tensor in state_dict.items()}
    recipes, report = map_keys(model, sources, stored, ignored=ignored)
    if report.problems:
        raise ValueError(
            f"{name}: the state dict does not fit its config ({report.problems}). Check that config "
            "and weights belong together and that the keys carry the original's names"
        )
    fill(model, recipes, dtype)


def _slice(recipe: Recipe, source: Source) -> Recipe:
    if source.parts == 1:
        return recipe
    shape = (recipe.shape[0] // source.parts, *recipe.shape[1:])
    return replace(
        recipe, shape=shape, load=lambda: recipe.load().chunk(source.parts)[source.part].clone().contiguous()
    )


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the kernel axes of a 1x1 convolution beyond (out, in), which is the same map as a linear layer."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _listed(what: str, items: Collection[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return [f"{len(items)} {what}: {', '.join(list(items)[:_MAX_LISTED])}{more}"]
