"""Opens any known file or folder: whose is it, what is inside, does every key fit? Reads no weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from transformers import CLIPTextConfig

from hummingbird.checkpoints import families
from hummingbird.checkpoints.architecture import (
    preset_of,
    text_encoder_config,
    text_encoder_heads,
    unet_options,
    vae_options,
)
from hummingbird.checkpoints.key_map import KeyReport, Recipe, Source, map_keys
from hummingbird.checkpoints.ldm import Layout, text_encoder_layout, unet_layout, vae_layout
from hummingbird.checkpoints.lora import read_lora
from hummingbird.checkpoints.tensor_file import CheckpointError, TensorFile, open_tensor_file
from hummingbird.models import UNetSpatioTemporalModel, preset_config

Config = Mapping[str, Mapping[str, Any]]
"""Options of our classes by component, such as ``{"text_encoder": {"num_attention_heads": 4}}``."""

UNET, VAE, TEXT_ENCODER = "unet", "vae", "text_encoder"
COMPONENTS = (UNET, VAE, TEXT_ENCODER)
LDM_PREFIXES = {UNET: "model.diffusion_model.", VAE: "first_stage_model.", TEXT_ENCODER: "cond_stage_model."}
CONFIG_ENTRY = "hummingbird"
"""Name under which a file that we wrote carries the options that no shape tells."""

_WRAPPERS = ("_forward_module.", "module.")  # DeepSpeed, data-parallel training
_WITHOUT_EFFECT = frozenset({"logvar", "lvlb_weights", "model_ema.decay", "model_ema.num_updates"})
_MARKERS = {
    "input_blocks.0.0.weight": UNET,
    "encoder.conv_in.weight": VAE,
    "decoder.conv_in.weight": VAE,
    "token_embedding.weight": TEXT_ENCODER,
    "model.token_embedding.weight": TEXT_ENCODER,
}
_FOLDER_CLASSES = {UNET: "UNetSpatioTemporalModel", VAE: "AutoencoderKL", TEXT_ENCODER: "CLIPTextModel"}
_MAX_LISTED = 4
_MAX_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """What a file or folder holds.

    Args:
        path: What was opened.
        family: A name in ``families.FAMILIES``.
        preset: The published network that the U-Net is, to the last shape; None for others.
        kind: ``checkpoint`` (all three networks), ``folder``, ``lora``, or the one component that it holds.
        container: How the tensors are stored, for people.
        licence: Of the published weights of the family, or ``unknown``.
        components: Component -> number of parameters.
        dtypes: Component -> type of its tensors, joined by "+" where there are several.
        dtype: Type of all tensors, likewise.
        missing: Keys that are needed and absent.
        unexpected: Keys that nothing is known about.
        mismatched: Keys whose shape cannot be.
        reshaped: Keys whose numbers are kept in another shape by our classes.
        unused: Keys that are known to have no effect on the result.
        untold: Options that must be given as config, because neither shapes nor the file tell them.
        stand_ins: Classes and functions that a pickle names; none of them was imported or called.
        notes: What else one should know.
    """

    path: str
    family: str
    preset: str | None
    kind: str
    container: str
    licence: str
    components: dict[str, int]
    dtypes: dict[str, str]
    dtype: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Parameters of all components."""
        return sum(self.components.values())

    @property
    def problems(self) -> str:
        """What keeps it from being loaded, in one line; empty where nothing does."""
        keys = KeyReport(missing=self.missing, unexpected=self.unexpected, mismatched=self.mismatched)
        untold = [f"{option} is not in the file: give it as config" for option in self.untold]
        return "; ".join([*filter(None, [keys.problems]), *untold])

    def to_text(self) -> str:
        """The report for people, one fact a line."""
        published = f" ({self.preset})" if self.preset not in (None, self.family) else ""
        lines = [
            f"family      {self.family}{published}: {families.FAMILIES[self.family].title}",
            f"holds       {self.kind}, {self.container}",
            f"licence     {self.licence}",
        ]
        for name, count in self.components.items():
            lines.append(f"{name:<12}{count:>15,} parameters, {self.dtypes[name]}")
        lines.append(f"{'all':<12}{self.num_parameters:>15,} parameters")
        for name in ("missing", "unexpected", "mismatched", "reshaped", "unused"):
            keys = getattr(self, name)
            more = f", and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
            lines.append(
                f"{name:<12}{len(keys) or 'none'}{': ' if keys else ''}"
                + ", ".join(keys[:_MAX_LISTED])
                + more
            )
        if self.stand_ins:
            lines.append(f"stand-ins   {len(self.stand_ins)} classes and functions, none looked up or called")
        lines += [f"note        {note}" for note in self.notes]
        lines.append(f"loads       {'no: ' + self.problems if self.problems else 'yes'}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Component:
    """One network of an open checkpoint.

    Args:
        layout: The network on the meta device.
        recipes: Its tensors, by our keys.
    """

    layout: Layout
    recipes: dict[str, Recipe]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An open file or folder, of which no weight has been read.

    Args:
        report: What it holds.
        components: The networks.
        rest: Tensors that no class of ours holds, by the original's names.
        lora: Low-rank updates, in the order of their list.
        scheduler: The sampler; None where there is no U-Net.
        default_call: Call arguments that suit it.
        tokenizer: Folder of a tokenizer, where there is one.
    """

    report: CheckpointReport
    components: dict[str, Component]
    rest: dict[str, Recipe] = field(default_factory=dict)
    lora: tuple[Recipe, ...] = ()
    scheduler: SchedulerMixin | None = None
    default_call: dict[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None


def inspect_checkpoint(path: str | os.PathLike[str], *, config: Config | None = None) -> CheckpointReport:
    """Say what a checkpoint file or a model folder holds, without loading it or running anything in it.

    Args:
        path: A ``.ckpt``, ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file, or a diffusers folder.
        config: Options that shapes do not tell, over what is read off the file.

    Raises:
        FileNotFoundError: Nothing is there.
        CheckpointError: It cannot be read safely, or is of no known family.
    """
    return open_checkpoint(path, config=config).report


def open_checkpoint(path: str | os.PathLike[str], *, config: Config | None = None) -> Checkpoint:
    """Open a file or folder; as ``inspect_checkpoint``, with what a conversion needs."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, config or {})
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    file = open_tensor_file(path)
    stored = _stored(file)
    if file.layout == "tensor_list" or (stored and all(name.isdecimal() for name in stored)):
        return _open_lora(file, [stored[name] for name in sorted(stored, key=int)])
    stored = _without_wrapper(stored)
    return _open_networks(file, stored, {**_own_config(file), **(config or {})})


def read_config(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read options by component from a JSON file, or from a model folder's configurations.

    Raises:
        ValueError: The file is not such a JSON object.
        FileNotFoundError: Nothing is there.
    """
    path = Path(path)
    if path.is_dir():
        found = {name: path / name / "config.json" for name in COMPONENTS}
        return {name: _read_json(file) for name, file in found.items() if file.is_file()}
    return _checked_config(_read_json(path), str(path))


# --- files --------------------------------------------------------------------------------------------------


def _without_wrapper(stored: dict[str, Recipe]) -> dict[str, Recipe]:
    for wrapper in _WRAPPERS:
        if stored and all(name.startswith(wrapper) for name in stored):
            return {name.removeprefix(wrapper): recipe for name, recipe in stored.items()}
    return stored


def components_of(stored: dict[str, Recipe]) -> tuple[dict[str, dict[str, Recipe]], dict[str, Recipe]]:
    """Split by network; the second part is what belongs to none. A file of one network has no prefixes."""
    rest = dict(stored)
    groups: dict[str, dict[str, Recipe]] = {}
    for component, prefix in LDM_PREFIXES.items():
        names = [name for name in rest if name.startswith(prefix)]
        if names:
            groups[component] = {name.removeprefix(prefix): rest.pop(name) for name in names}
    if not groups:
        only = next((component for marker, component in _MARKERS.items() if marker in stored), None)
        if only is not None:
            return {only: dict(stored)}, {}
    return groups, rest


def _unknown(path: Path, stored: Mapping[str, Recipe]) -> str:
    names = ", ".join(list(stored)[:3]) or "none"
    hint = ""
    if any(re.match(r"(down_blocks|encoder\.down_blocks|text_model|embeddings)\.", name) for name in stored):
        hint = "; it looks like one file of a diffusers folder: give the folder"
    return (
        f"{path}: of no known family: got {len(stored)} tensors ({names}, ...), expected VideoCrafter2, "
        f"T2V-Turbo or Hummingbird weights, or one of their U-Net, VAE and text tower{hint}"
    )


def _own_config(file: TensorFile) -> dict[str, dict[str, Any]]:
    """Options that a file carries because we wrote it."""
    text = file.metadata.get(CONFIG_ENTRY)
    if not isinstance(text, str):
        return {}
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file.path}: its entry {CONFIG_ENTRY!r} is not JSON: {error}") from error
    return _checked_config(value, f"{file.path}, entry {CONFIG_ENTRY!r}")


def _open_networks(file: TensorFile, stored: dict[str, Recipe], config: Config) -> Checkpoint:
    groups, rest = components_of(stored)
    if not groups:
        raise CheckpointError(_unknown(file.path, stored))
    heads = _heads_in(file)
    try:
        layouts = {name: infer_layout(name, groups, config.get(name, {}), heads) for name in groups}
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    prefixed = any(name.startswith(tuple(LDM_PREFIXES.values())) for name in stored)
    components: dict[str, Component] = {}
    reports: list[KeyReport] = []
    kept = {name: recipe for name, recipe in rest.items() if name in families.BUFFERS}
    for name, layout in layouts.items():
        recipes, keys = map_keys(layout.model, layout.sources, groups[name], ignored=layout.unused)
        components[name] = Component(layout=layout, recipes=recipes)
        reports.append(keys.with_prefix(LDM_PREFIXES[name] if prefixed else ""))
        kept |= {_ldm_name(name, key): groups[name][key] for key in keys.unused}
    strangers = tuple(sorted(rest.keys() - set(families.BUFFERS) - _WITHOUT_EFFECT))
    reports.append(KeyReport(unexpected=strangers))
    unet = layouts[UNET].model if UNET in layouts else None
    family = _FAMILY_OF_PART[next(iter(groups))] if unet is None else families.family_of(unet)
    report = CheckpointReport(
        path=str(file.path),
        family=family,
        preset=preset_of(unet) if unet is not None else None,
        kind="checkpoint" if len(groups) > 1 else next(iter(groups)),
        container=_container(file),
        licence=_licence(family, unet, file),
        components={
            name: sum(recipe.num_elements for recipe in group.values()) for name, group in groups.items()
        },
        dtypes={name: _dtype_names(group.values()) for name, group in groups.items()},
        dtype=_dtype_names(recipe for group in groups.values() for recipe in group.values()),
        **_joined(reports),
        untold=tuple(layout.untold for layout in layouts.values() if layout.untold),
        stand_ins=file.ignored,
        notes=_notes(family, unet, set(groups)),
    )
    return Checkpoint(
        report=report,
        components=components,
        rest=kept,
        scheduler=None if unet is None else _scheduler(unet, rest, config),
        default_call={}
        if unet is None
        else {**families.default_call(unet), **config.get("default_call", {})},
    )


def _ldm_name(component: str, key: str) -> str:
    if component == TEXT_ENCODER:
        key = f"model.{key.removeprefix('model.')}"
    return LDM_PREFIXES[component] + key


_FAMILY_OF_PART = {VAE: "autoencoder-kl", TEXT_ENCODER: "open-clip-text"}


def infer_layout(
    name: str,
    groups: Mapping[str, Mapping[str, Recipe]],
    options: Mapping[str, Any],
    num_heads: int | None = None,
) -> Layout:
    """Say which network a component is.

    Args:
        name: The component.
        groups: The original's tensors by component.
        options: Of our class; they win over what the shapes tell, and replace it where they say it all.
        num_heads: Attention heads of the text tower, where the file says so.

    Raises:
        ArchitectureError: Where neither options nor shapes tell.
    """
    shapes = {key: recipe.shape for key, recipe in groups[name].items()}
    given = dict(options)
    if name == UNET:
        table = groups.get(TEXT_ENCODER, {}).get("model.token_embedding.weight")
        told = {} if "channel_mult" in given else unet_options(shapes, table.shape[1] if table else None)
        return unet_layout({**told, **given}, shapes)
    if name == VAE:
        told = {} if "block_out_channels" in given else vae_options(shapes)
        return vae_layout({**told, **given})
    if "num_hidden_layers" in given:
        return text_encoder_layout(CLIPTextConfig(**given), shapes)
    heads = given.pop("num_attention_heads", num_heads) or text_encoder_heads(shapes)
    config = text_encoder_config(shapes, heads)
    for key, value in given.items():
        setattr(config, key, value)
    untold = "" if heads else "text_encoder.num_attention_heads"
    return replace(text_encoder_layout(config, shapes), untold=untold)


def _licence(family: str, unet: UNetSpatioTemporalModel | None, file: TensorFile) -> str:
    """The licence of a family is that of its published weights; other widths are somebody else's."""
    if unet is not None and preset_of(unet) is None and file.layout != "module":
        return families.UNKNOWN
    return families.FAMILIES[family].licence


def _heads_in(file: TensorFile) -> int | None:
    """Attention heads of the text tower where a pickled module carries them as an attribute."""
    for key, value in file.metadata.items():
        if key.endswith("resblocks.0.attn.num_heads") and isinstance(value, int):
            return value
    return None


def _scheduler(
    unet: UNetSpatioTemporalModel, buffers: Mapping[str, Recipe], config: Config
) -> SchedulerMixin:
    if "scheduler" in config:
        return families.scheduler_from_config(config["scheduler"])
    return families.scheduler_for(unet, buffers)


def _open_lora(file: TensorFile, tensors: list[Recipe]) -> Checkpoint:
    fits = [
        name
        for name in ("videocrafter2", "hummingbird-0.9b", "hummingbird-0.7b")
        if _lora_fits(name, tensors)
    ]
    rank = tensors[0].shape[-1] if tensors and tensors[0].shape else 0
    network = (
        f"the layers of {fits[0]}" if fits else "no published network; it may fit the base that you give"
    )
    report = CheckpointReport(
        path=str(file.path),
        family="t2v-turbo-lora",
        preset=fits[0] if fits else None,
        kind="lora",
        container=_container(file),
        licence=families.FAMILIES["t2v-turbo-lora"].licence,
        components={"unet_lora": sum(recipe.num_elements for recipe in tensors)},
        dtypes={"unet_lora": _dtype_names(tensors)},
        dtype=_dtype_names(tensors),
        stand_ins=file.ignored,
        notes=(
            f"{len(tensors) // 2} pairs of rank {rank} without names, which fit {network}",
            "needs a base: give the VideoCrafter2 file or folder as base",
            "holds only an update of time_cond_proj, whose random base weights were never published: results "
            "of the original training cannot be had exactly from this file",
        ),
    )
    return Checkpoint(report=report, components={}, lora=tuple(tensors))


def _lora_fits(preset: str, tensors: list[Recipe]) -> bool:
    with torch.device("meta"):
        unet = UNetSpatioTemporalModel.from_config(preset_config(preset, guidance_embedding=True))
    try:
        read_lora(unet, tensors)
    except ValueError:
        return False
    return True


# --- folders ------------------------------------------------------------------------------------------------


def _open_folder(path: Path, config: Config) -> Checkpoint:
    present = [name for name in COMPONENTS if (path / name / "config.json").is_file()]
    if UNET not in present:
        raise CheckpointError(
            f"{path}: no unet/config.json, so not a model folder of ours; it has "
            f"{', '.join(sorted(entry.name for entry in path.iterdir())[:5]) or 'nothing'}"
        )
    components: dict[str, Component] = {}
    reports: list[KeyReport] = []
    for name in present:
        layout = _folder_layout(path / name, name, config.get(name, {}))
        stored = _folder_tensors(path / name)
        ours = layout.model.state_dict()
        recipes, keys = map_keys(layout.model, _same_names(ours, stored), stored)
        components[name] = Component(layout=layout, recipes=recipes)
        reports.append(keys.with_prefix(f"{name}/"))
    unet = components[UNET].layout.model
    family = families.family_of(unet)
    stored_dtypes = {name: _dtype_names(part.recipes.values()) for name, part in components.items()}
    index = _read_json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
    tokenizer = path / "tokenizer"
    rest = path / "original" / "tensors.safetensors"
    report = CheckpointReport(
        path=str(path),
        family=family,
        preset=preset_of(unet),
        kind="folder",
        container="diffusers folder",
        licence=_card_licence(path / "README.md"),
        components={
            name: sum(recipe.num_elements for recipe in part.recipes.values())
            for name, part in components.items()
        },
        dtypes=stored_dtypes,
        dtype=_dtype_names(recipe for part in components.values() for recipe in part.recipes.values()),
        **_joined(reports),
        notes=() if index else ("no model_index.json: parts of a model, not a pipeline",),
    )
    return Checkpoint(
        report=report,
        components=components,
        rest=_stored(open_tensor_file(rest)) if rest.is_file() else {},
        scheduler=_folder_scheduler(path / "scheduler" / "scheduler_config.json", unet),
        default_call=dict(index.get("default_call") or {}),
        tokenizer=tokenizer if tokenizer.is_dir() else None,
    )


def _folder_layout(folder: Path, name: str, given: Mapping[str, Any]) -> Layout:
    options = _read_json(folder / "config.json")
    found = options.get("_class_name") or next(iter(options.get("architectures") or ()), None)
    if found != _FOLDER_CLASSES[name]:
        raise CheckpointError(f"{folder}: holds a {found}, expected a {_FOLDER_CLASSES[name]}")
    options = {key: value for key, value in options.items() if not key.startswith("_")} | dict(given)
    if name == UNET:
        return unet_layout(options)
    if name == VAE:
        return vae_layout(options)
    return text_encoder_layout(CLIPTextConfig(**options))


def _folder_tensors(folder: Path) -> dict[str, Recipe]:
    """The tensors of a component, whether its weights are one file or shards."""
    indexes = sorted(folder.glob("*.safetensors.index.json"), key=lambda file: len(file.name))
    if indexes:
        names = sorted(set(_read_json(indexes[0]).get("weight_map", {}).values()))
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{indexes[0]}: names a file outside its folder")
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"), key=lambda file: len(file.name))[:1]
    if not files:
        raise CheckpointError(f"{folder}: no .safetensors file")
    return {key: recipe for file in files for key, recipe in _stored(open_tensor_file(file)).items()}


def _same_names(ours: Iterable[str], stored: Mapping[str, Recipe]) -> dict[str, Source]:
    """Where our keys lie in a folder: under their names, which old text encoders begin by ``text_model.``."""
    nested = bool(stored) and all(key.startswith("text_model.") for key in stored)
    prefix = "text_model." if nested else ""
    return {key: Source(prefix + key.removeprefix("text_model.") if nested else key) for key in ours}


def _folder_scheduler(file: Path, unet: UNetSpatioTemporalModel) -> SchedulerMixin:
    if file.is_file():
        return families.scheduler_from_config(_read_json(file))
    return families.scheduler_for(unet, {})


def _card_licence(card: Path) -> str:
    """The licence that a model card declares in its header."""
    if not card.is_file():
        return families.UNKNOWN
    header = re.match(r"---\n(.*?)\n---", card.read_text(errors="replace")[:10_000], flags=re.DOTALL)
    found = re.search(r"^license:\s*(\S+)", header[1], flags=re.MULTILINE) if header else None
    return found[1] if found else families.UNKNOWN


# --- common -------------------------------------------------------------------------------------------------


def _stored(file: TensorFile) -> dict[str, Recipe]:
    return {
        name: Recipe(shape=tensor.shape, dtype=tensor.dtype, load=tensor.load)
        for name, tensor in file.tensors.items()
    }


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, expected a configuration of at most 1 MB")
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: got a JSON {type(value).__name__}, expected an object")
    return value


def _checked_config(value: Any, where: str) -> dict[str, dict[str, Any]]:
    known = (*COMPONENTS, "scheduler", "default_call")
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise ValueError(f'{where}: expected options by component, as in {{"unet": {{...}}}}')
    unknown = sorted(value.keys() - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown component {', '.join(unknown)}, expected {', '.join(known)}")
    return value


def _joined(reports: list[KeyReport]) -> dict[str, tuple[str, ...]]:
    names = ("missing", "unexpected", "mismatched", "reshaped", "unused")
    return {name: tuple(key for report in reports for key in getattr(report, name)) for name in names}


def _container(file: TensorFile) -> str:
    if file.path.suffix == ".safetensors":
        return "safetensors"
    kinds = {
        "state_dict": "pickled state dict",
        "tensor_list": "pickled list of tensors",
        "module": "pickled module",
    }
    where = f" under {'.'.join(file.nesting)}" if file.nesting else ""
    return kinds[file.layout] + where


def _dtype_names(recipes: Iterable[Recipe]) -> str:
    return "+".join(sorted({str(recipe.dtype).removeprefix("torch.") for recipe in recipes}))


def _notes(family: str, unet: UNetSpatioTemporalModel | None, present: set[str]) -> tuple[str, ...]:
    notes = []
    absent = [name for name in COMPONENTS if name not in present]
    if absent:
        notes.append(f"has no {' and no '.join(absent)}: give a base for a whole pipeline")
    if unet is not None and preset_of(unet) is None:
        notes.append("the structure of this family, but not its published widths")
    if family.startswith("hummingbird") and unet is not None and unet.config.time_cond_proj_dim is None:
        notes.append("no guidance projection: the state before distillation, sampled like VideoCrafter2")
    return tuple(notes)
