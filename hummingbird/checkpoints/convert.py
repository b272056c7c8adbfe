"""Conversion both ways, one tensor at a time: any known file or folder to a diffusers folder, to one file in
the original's layout, or to networks in memory."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hummingbird import __version__
from hummingbird.checkpoints import families
from hummingbird.checkpoints.architecture import plain_config
from hummingbird.checkpoints.inspection import (
    COMPONENTS,
    CONFIG_ENTRY,
    LDM_PREFIXES,
    TEXT_ENCODER,
    UNET,
    VAE,
    Checkpoint,
    CheckpointReport,
    Component,
    Config,
    components_of,
    infer_layout,
    open_checkpoint,
)
from hummingbird.checkpoints.key_map import Recipe, fill, recipe_of
from hummingbird.checkpoints.ldm import Layout, to_ldm, unet_layout
from hummingbird.checkpoints.lora import (
    GUIDANCE_PROJECTION,
    MissingProjection,
    guidance_width,
    merge,
    missing_projection,
    read_lora,
)
from hummingbird.checkpoints.tensor_file import CheckpointError
from hummingbird.checkpoints.tensor_writer import write_safetensors, write_torch_file
from hummingbird.checkpoints.tokenizer import OPEN_CLIP_VOCABULARY_SIZE, open_clip_tokenizer

FILE_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
"""Names that end so are one file in the original's layout; every other name is a folder."""

Progress = Callable[[int, int], None]
"""Called after each tensor with the bytes written so far and the bytes in all."""

_WEIGHTS = {
    UNET: "diffusion_pytorch_model.safetensors",
    VAE: "diffusion_pytorch_model.safetensors",
    TEXT_ENCODER: "model.safetensors",
}
_INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # Radford et al., arXiv 2103.00020, section 2.5


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What a conversion made.

    Args:
        source: What was read.
        to: The folder or file that was made.
        family: Of the result.
        components: Networks in it -> number of parameters.
        dtype: Types of their tensors.
        size_bytes: Bytes of all tensors.
        seconds: Time that it took.
        notes: What one should know about the result.
    """

    source: CheckpointReport
    to: str
    family: str
    components: dict[str, int]
    dtype: str
    size_bytes: int
    seconds: float
    notes: tuple[str, ...]


def convert_checkpoint(
    source: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    config: Config | None = None,
    dtype: torch.dtype | None = None,
    time_cond_proj: MissingProjection = "random",
    seed: int = 0,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a file or folder of a known family.

    Args:
        source: What to read.
        to: ``.ckpt``, ``.pt``, ``.pth`` or ``.safetensors`` for one file in the original's layout, any other
            name for a diffusers folder. Must not exist; appears whole or not at all.
        base: A file or folder that has what ``source`` lacks: the network under low-rank updates, a VAE and a
            text encoder beside a bare U-Net, a tokenizer.
        config: Options that shapes do not tell, over what is read off the files.
        dtype: Type of the result; each tensor's own where left out.
        time_cond_proj: What stands in for the guidance projection under T2V-Turbo's updates, which do not
            hold it; see ``lora.missing_projection``.
        seed: Of that stand-in.
        progress: Told of the bytes written.

    Raises:
        FileNotFoundError: There is no source or base.
        FileExistsError: There is something at ``to``.
        CheckpointError: A file cannot be read safely, is of no known family, lacks keys or has other ones.
        ValueError: The base is needed and missing, or does not fit.
    """
    start_s = time.perf_counter()
    to = _unused(Path(to))
    read, checkpoint = open_complete(
        source, base=base, config=config, time_cond_proj=time_cond_proj, seed=seed, dtype=dtype
    )
    if to.suffix in FILE_SUFFIXES:
        tensors, notes = _original_tensors(checkpoint, dtype)
        config_entry = _untold_config(checkpoint, tensors)
        size_bytes = _size(tensors)
        with _whole_or_absent(to) as partial:
            _write_original(partial, to.suffix, tensors, config_entry, _counter(progress, size_bytes))
    else:
        networks = _folder_tensors(checkpoint, dtype)
        size_bytes = sum(_size(tensors) for tensors in networks.values())
        with _whole_or_absent(to) as partial:
            notes = _write_folder(partial, checkpoint, networks, _counter(progress, size_bytes))
    return ConversionReport(
        source=read,
        to=str(to),
        family=checkpoint.report.family,
        components=_num_parameters(checkpoint),
        dtype=checkpoint.report.dtype if dtype is None else str(dtype).removeprefix("torch."),
        size_bytes=size_bytes,
        seconds=round(time.perf_counter() - start_s, 3),
        notes=(*checkpoint.report.notes, *notes),
    )


def load_checkpoint(
    source: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    config: Config | None = None,
    dtype: torch.dtype | None = torch.float32,
    time_cond_proj: MissingProjection = "random",
    seed: int = 0,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Load the components of a whole pipeline; arguments and errors are those of ``convert_checkpoint``.

    Returns:
        Arguments for ``HummingbirdPipeline``, and what one should know about them.
    """
    _, checkpoint = open_complete(
        source, base=base, config=config, time_cond_proj=time_cond_proj, seed=seed, dtype=dtype
    )
    absent = [name for name in COMPONENTS if name not in checkpoint.components]
    if absent:
        raise ValueError(
            f"{source}: has no {' and no '.join(absent)}: give a file or folder that has them as base"
        )
    tokenizer, notes = _tokenizer(checkpoint)
    for component in checkpoint.components.values():
        fill(component.layout.model, component.recipes, dtype)
        component.layout.model.eval()
    models = {name: component.layout.model for name, component in checkpoint.components.items()}
    arguments = {
        **models,
        "tokenizer": tokenizer,
        "scheduler": checkpoint.scheduler,
        "default_call": checkpoint.default_call,
    }
    return arguments, (*checkpoint.report.notes, *notes)


def open_complete(
    source: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None,
    config: Config | None,
    time_cond_proj: MissingProjection,
    seed: int,
    dtype: torch.dtype | None,
) -> tuple[CheckpointReport, Checkpoint]:
    """Open ``source``, take from ``base`` what it lacks, and refuse what does not fit.

    Returns:
        The report on ``source`` alone, and both as one.
    """
    checkpoint = _fitting(open_checkpoint(source, config=config))
    read = checkpoint.report
    below = None if base is None else _fitting(open_checkpoint(base, config=config))
    if read.kind == "lora":
        if below is None or UNET not in below.components:
            got = "none" if below is None else f"a {below.report.kind} without U-Net"
            raise ValueError(
                f"{source}: low-rank updates need the U-Net that they were trained on: got {got} as base, "
                "expected the VideoCrafter2 file or folder"
            )
        checkpoint = _with_lora(checkpoint, below, time_cond_proj, seed, dtype)
    elif below is not None:
        checkpoint = _with_base(checkpoint, below)
    _check_widths(checkpoint)
    return read, checkpoint


def _fitting(checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.report.problems:
        raise CheckpointError(
            f"{checkpoint.report.path}: not a whole {checkpoint.report.family} {checkpoint.report.kind}: "
            f"{checkpoint.report.problems}. Nothing is loaded in part; see `hummingbird inspect`"
        )
    return checkpoint


def _check_widths(checkpoint: Checkpoint) -> None:
    """Refuse networks that cannot work together, as two files may hold."""
    configs = {name: component.layout.model.config for name, component in checkpoint.components.items()}
    unet, path = configs.get(UNET), checkpoint.report.path
    if unet is not None and TEXT_ENCODER in configs:
        got, expected = configs[TEXT_ENCODER].hidden_size, unet.cross_attention_dim
        if got != expected:
            raise ValueError(
                f"{path}: text tokens are {got} wide, expected {expected} as the U-Net attends to"
            )
    if unet is not None and VAE in configs:
        got, expected = configs[VAE].latent_channels, unet.in_channels
        if got != expected:
            raise ValueError(f"{path}: the VAE has {got} channels, expected {expected} as the U-Net has")


# --- two files as one ---------------------------------------------------------------------------------------


def _with_base(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    taken = [name for name in base.components if name not in checkpoint.components]
    lacks = [note for note in checkpoint.report.notes if not note.startswith("has no ")]
    note = (f"{' and '.join(taken)} from {Path(base.report.path).name}",) if taken else ()
    return replace(
        checkpoint,
        report=replace(checkpoint.report, notes=(*lacks, *note)),
        components={
            name: (checkpoint if name in checkpoint.components else base).components[name]
            for name in COMPONENTS
            if name in checkpoint.components or name in base.components
        },
        rest={**base.rest, **checkpoint.rest},
        scheduler=checkpoint.scheduler or base.scheduler,
        default_call=checkpoint.default_call or base.default_call,
        tokenizer=checkpoint.tokenizer or base.tokenizer,
    )


def _with_lora(
    lora: Checkpoint, base: Checkpoint, how: MissingProjection, seed: int, dtype: torch.dtype | None
) -> Checkpoint:
    """Merge updates into the base's U-Net, which becomes a few-step student by them."""
    unet = base.components[UNET]
    layout, recipes = unet.layout, dict(unet.recipes)
    files = [Path(checkpoint.report.path).name for checkpoint in (lora, base)]
    notes = [f"low-rank updates of {files[0]} merged into {files[1]}"]
    scheduler, default_call = base.scheduler, base.default_call
    width = guidance_width(layout.model, lora.lora)
    if width is not None and layout.model.config.time_cond_proj_dim is None:
        layout = unet_layout({**plain_config(layout.model), "time_cond_proj_dim": width})
        shape = (layout.model.config.model_channels, width)
        some = next(iter(recipes.values()))
        recipes[f"{GUIDANCE_PROJECTION}.weight"] = missing_projection(shape, some.dtype, how, seed)
        drawn = f"drawn with seed {seed}" if how == "random" else "zeros"
        notes.append(f"base weights of time_cond_proj are in neither file: {drawn}")
        scheduler = families.scheduler_for(layout.model, base.rest)
        default_call = families.default_call(layout.model)
    for name, (up, down) in read_lora(layout.model, lora.lora).items():
        key = f"{name}.weight"
        recipes[key] = merge(recipes[key], up, down, dtype=dtype)
    ordered = {key: recipes[key] for key in layout.model.state_dict()}
    return replace(
        base,
        report=replace(base.report, family=families.family_of(layout.model), notes=tuple(notes)),
        components={**base.components, UNET: Component(layout=layout, recipes=ordered)},
        scheduler=scheduler,
        default_call=default_call,
    )


# --- folders ------------------------------------------------------------------------------------------------

Networks = dict[str, dict[str, Recipe]]


def _folder_tensors(checkpoint: Checkpoint, dtype: torch.dtype | None) -> Networks:
    networks = {
        name: {key: recipe.cast(dtype) for key, recipe in component.recipes.items()}
        for name, component in checkpoint.components.items()
    }
    if checkpoint.rest:
        networks["original"] = checkpoint.rest
    return networks


def _write_folder(
    folder: Path, checkpoint: Checkpoint, networks: Networks, count: Callable[[str, int], None]
) -> list[str]:
    # Imported here: the pipeline offers from_single_file, which leads back to this module.
    from hummingbird.pipelines import HummingbirdPipeline
    from hummingbird.pipelines.sharing import CARD_FILE_NAME, LOADER, LOADER_FILE_NAME

    folder.mkdir()
    notes: list[str] = []
    for name, tensors in networks.items():
        (folder / name).mkdir()
        if name in COMPONENTS:
            _save_config(checkpoint.components[name].layout, folder / name, tensors)
        write_safetensors(folder / name / _WEIGHTS.get(name, "tensors.safetensors"), tensors, progress=count)
    models = {name: component.layout.model for name, component in checkpoint.components.items()}
    if len(models) == len(COMPONENTS):
        tokenizer, notes = _tokenizer(checkpoint)
        pipe = HummingbirdPipeline(
            **models,
            tokenizer=tokenizer,
            scheduler=checkpoint.scheduler,
            default_call=checkpoint.default_call,
        )
        pipe.save_config(folder)
        pipe.scheduler.save_pretrained(folder / "scheduler")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / "tokenizer")
        (folder / LOADER_FILE_NAME).write_text(LOADER)
    (folder / CARD_FILE_NAME).write_text(_model_card(checkpoint, notes))
    return notes


def _save_config(layout: Layout, folder: Path, tensors: Mapping[str, Recipe]) -> None:
    if layout.name != "text encoder":
        layout.model.save_config(folder)
        return
    config = layout.model.config
    config.architectures = [type(layout.model).__name__]
    config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(folder)


def _tokenizer(checkpoint: Checkpoint) -> tuple[PreTrainedTokenizerBase | None, list[str]]:
    """The tokenizer that the text tower was trained with, as far as that is known."""
    if checkpoint.tokenizer is not None:
        return AutoTokenizer.from_pretrained(checkpoint.tokenizer), []
    config = checkpoint.components[TEXT_ENCODER].layout.model.config
    if config.vocab_size == OPEN_CLIP_VOCABULARY_SIZE:
        return open_clip_tokenizer(config.max_position_embeddings), []
    return None, [
        f"no tokenizer: the text tower knows {config.vocab_size} tokens, OpenCLIP's tokenizer "
        f"{OPEN_CLIP_VOCABULARY_SIZE}; give prompt_embeds, or a base folder that has one"
    ]


def _model_card(checkpoint: Checkpoint, notes: list[str]) -> str:
    report = checkpoint.report
    family = families.FAMILIES[report.family]
    licence = report.licence
    source = family.licence_source if licence == family.licence else "as the converted model's card says"
    rows = [f"| {name} | {count:,} |" for name, count in _num_parameters(checkpoint).items()]
    call = ", ".join(f"{name} {value}" for name, value in checkpoint.default_call.items())
    lines = [
        "---",
        f"license: {licence}",
        "library_name: diffusers",
        "pipeline_tag: text-to-video",
        "tags: [hummingbird, text-to-video]",
        "---",
        "",
        f"# {family.title}",
        "",
        f"Converted from `{Path(report.path).name}` ({report.container}, {report.dtype}) by hummingbird "
        f"{__version__}.",
        "The weights stay under the licence that their publisher gave them.",
        "",
        f"Licence of the weights: {licence} ({source}).",
        "",
        "| part | parameters |",
        "|---|---:|",
        *rows,
        "",
        f"Default call: {call}." if call else "Parts of a model; not a pipeline.",
        "",
        *(f"- {note}" for note in (*report.notes, *notes)),
    ]
    return "\n".join(lines).rstrip() + "\n"


# --- the original's layout ----------------------------------------------------------------------------------


def _original_tensors(
    checkpoint: Checkpoint, dtype: torch.dtype | None
) -> tuple[dict[str, Recipe], list[str]]:
    """The tensors of an original checkpoint, or of a bare network where there is only one."""
    notes: list[str] = []
    networks = {}
    for name, component in checkpoint.components.items():
        recipes = {key: recipe.cast(dtype) for key, recipe in component.recipes.items()}
        networks[name] = to_ldm(component.layout.model, recipes)
    if len(networks) == 1:
        return next(iter(networks.values())), notes
    tensors: dict[str, Recipe] = {}
    buffers = {name: checkpoint.rest[name] for name in families.BUFFERS if name in checkpoint.rest}
    if not buffers and checkpoint.scheduler is not None:
        buffers = families.schedule_buffers(checkpoint.scheduler)
        notes.append("tensors of the noise schedule computed from the scheduler")
    tensors |= buffers
    for name, network in networks.items():
        tensors |= {LDM_PREFIXES[name] + key: recipe for key, recipe in network.items()}
    if TEXT_ENCODER in networks:
        unused = _unused_text_tensors(networks[TEXT_ENCODER], checkpoint)
        absent = [key for key in unused if key not in checkpoint.rest]
        tensors |= {key: checkpoint.rest.get(key, recipe).cast(dtype) for key, recipe in unused.items()}
        if absent:
            notes.append(f"{len(absent)} tensors of the text tower that have no effect are zeros")
        if checkpoint.components[TEXT_ENCODER].layout.model.config.vocab_size != OPEN_CLIP_VOCABULARY_SIZE:
            notes.append("the tokenizer has no place in the file: to read it again, give a folder as base")
    return tensors, notes


def _unused_text_tensors(text: Mapping[str, Recipe], checkpoint: Checkpoint) -> dict[str, Recipe]:
    """Stand-ins for what the original's strict loader wants and our encoder lacks: last block and head."""
    config = checkpoint.components[TEXT_ENCODER].layout.model.config
    prefix = LDM_PREFIXES[TEXT_ENCODER]
    first, last = (f"model.transformer.resblocks.{index}." for index in (0, config.num_hidden_layers))
    dtype = next(iter(text.values())).dtype
    block = {key: recipe.shape for key, recipe in text.items() if key.startswith(first)}
    zeros = {key.replace(first, last): torch.zeros(shape, dtype=dtype) for key, shape in block.items()}
    head = {
        "model.text_projection": torch.zeros(config.hidden_size, config.projection_dim, dtype=dtype),
        "model.logit_scale": torch.tensor(_INITIAL_LOGIT_SCALE, dtype=dtype),
    }
    return {prefix + key: recipe_of(tensor) for key, tensor in {**zeros, **head}.items()}


def _write_original(
    path: Path,
    suffix: str,
    tensors: Mapping[str, Recipe],
    config: Mapping[str, Any],
    count: Callable[[str, int], None],
) -> None:
    entries = {CONFIG_ENTRY: json.dumps(config)} if config else {}
    if suffix == ".safetensors":
        write_safetensors(path, tensors, entries, count)
    else:
        write_torch_file(path, tensors, entries=entries, progress=count)


def _untold_config(checkpoint: Checkpoint, tensors: dict[str, Recipe]) -> dict[str, dict[str, Any]]:
    """The options that nobody could read off these tensors again; empty for every published network."""
    config: dict[str, dict[str, Any]] = {}
    groups, _ = components_of(tensors)
    for name, component in checkpoint.components.items():
        options = plain_config(component.layout.model)
        try:
            layout = infer_layout(name, groups, {})
            told = not layout.untold and plain_config(layout.model) == options
        except ValueError:
            told = False
        if not told:
            config[name] = options
    if checkpoint.scheduler is not None:
        unet = checkpoint.components[UNET].layout.model
        scheduler = _scheduler_config(checkpoint.scheduler)
        if scheduler != _scheduler_config(families.scheduler_for(unet, {})):
            config["scheduler"] = scheduler
        if checkpoint.default_call and checkpoint.default_call != families.default_call(unet):
            config["default_call"] = checkpoint.default_call
    return config


def _scheduler_config(scheduler: SchedulerMixin) -> dict[str, Any]:
    plain = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"_class_name": type(scheduler).__name__, **plain}


# --- common -------------------------------------------------------------------------------------------------


@contextmanager
def _whole_or_absent(to: Path) -> Iterator[Path]:
    """Give a path in a hidden folder beside ``to``; what is there becomes ``to`` when the block ends well."""
    to.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}.", suffix=".part"))
    try:
        partial = workplace / to.name
        yield partial
        partial.rename(to)  # a folder takes the place of an empty one
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _unused(to: Path) -> Path:
    if to.is_dir() and not any(to.iterdir()) and to.suffix not in FILE_SUFFIXES:
        return to
    if to.exists() or to.is_symlink():
        raise FileExistsError(f"{to} exists already, expected a new name: remove it or choose another one")
    return to


def _counter(progress: Progress | None, size_bytes: int) -> Callable[[str, int], None]:
    written = 0

    def count(key: str, num_bytes: int) -> None:
        nonlocal written
        written += num_bytes
        if progress is not None:
            progress(written, size_bytes)

    return count


def _size(tensors: Mapping[str, Recipe]) -> int:
    return sum(recipe.size_bytes for recipe in tensors.values())


def _num_parameters(checkpoint: Checkpoint) -> dict[str, int]:
    return {
        name: sum(recipe.num_elements for recipe in component.recipes.values())
        for name, component in checkpoint.components.items()
    }
