"""Saved folders that others can use: a model card, and code by which diffusers alone finds the pipeline."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCardData, create_repo, file_exists
from huggingface_hub.repocard import metadata_load

from hummingbird.export.components import ExportedPart

CARD_FILE_NAME = "README.md"
LICENCE_FILE_NAME = "LICENSE"
UNKNOWN_LICENCE = "unknown"
"""What the hub's metadata calls a licence that nobody has named."""
_LARGEST_TEXT_BYTES = 1_000_000
LOADER_FILE_NAME = "pipeline.py"
LOADER = '''"""Finds the pipeline's class in the installed package (``pip install hummingbird-t2v``), for

``DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline="pipeline", trust_remote_code=True)``.
"""

from hummingbird import HummingbirdPipeline

__all__ = ["HummingbirdPipeline"]
'''
_CARD = """---
{metadata}
---

# {name}

Makes video from text with Hummingbird: a {kind} model. Unless a call says otherwise: {steps} steps, {frames}
frames of {height}x{width}, {fps} frames per second.

```python
import torch
from diffusers.utils import export_to_video
from hummingbird import HummingbirdPipeline

pipe = HummingbirdPipeline.from_pretrained("{name}", dtype=torch.float16).to("cuda")
export_to_video(pipe("a boat on a lake at sunset").frames[0], "video.mp4", fps={fps})
```

The same by diffusers' own loader, where the package `hummingbird-t2v` is installed:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", custom_pipeline="pipeline", trust_remote_code=True)
```

| component | class | parameters |
|---|---|---:|
{components}

## To be completed

- Licence: {licence}
- Training data, measured quality, and what the model cannot do.
"""


def licence_of(folder: Path) -> str:
    """Read the licence that a model folder's card names, as the hub spells it; ``unknown`` where none does.

    Args:
        folder: Anybody's; its card is read as data, and only a plain short name is believed.
    """
    card = folder / CARD_FILE_NAME
    if not card.is_file() or card.stat().st_size > _LARGEST_TEXT_BYTES:
        return UNKNOWN_LICENCE
    try:
        named = (metadata_load(card) or {}).get("license")
    except (ValueError, UnicodeDecodeError, yaml.YAMLError):
        return UNKNOWN_LICENCE
    return named if isinstance(named, str) and re.fullmatch(r"[\w.+-]{1,64}", named) else UNKNOWN_LICENCE


class SharablePipeline(DiffusionPipeline):
    """Makes complete what a pipeline of diffusers saves and uploads."""

    origin: Path | None = None
    """Local folder of the model that this one is or was made from: its licence goes with the weights."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Save every component, a model card (``README.md``), a loader (``pipeline.py``) and, where the model
        that this one was made from has a ``LICENSE``, that.

        A card, loader or licence that is there already, in the folder or in the hub's repository, is left as
        it is.

        Args:
            save_directory: Folder, made where it is missing.
            safe_serialization: Whether weights are stored as safetensors.
            variant: Name of this version of the weights, such as ``fp16``.
            max_shard_size: Largest weights file, in bytes or as ``"5GB"``.
            push_to_hub: Whether to upload the folder, too.
            use_flashpack: Whether weights are stored as flashpack instead.
            **kwargs: For the upload: ``repo_id`` (the folder's name where left out), ``commit_message``,
                ``private``, ``token``, ``create_pr``.

        Raises:
            ValueError: Where parts are exported graphs.

        Returns:
            What the hub answers to an upload; None without one.
        """
        folder = Path(save_directory)
        exported = [name for name, part in self.components.items() if isinstance(part, ExportedPart)]
        if exported:
            raise ValueError(
                f"{', '.join(exported)}: exported graphs cannot be saved again; copy the exported folder"
            )
        super().save_pretrained(
            folder,
            safe_serialization=safe_serialization,
            variant=variant,
            max_shard_size=max_shard_size,
            use_flashpack=use_flashpack,
        )
        card, loader = folder / CARD_FILE_NAME, folder / LOADER_FILE_NAME
        repo_id = kwargs.pop("repo_id", folder.name)
        has_card = card.exists()
        if push_to_hub:
            token = kwargs.get("token")
            private = kwargs.pop("private", None)
            repo_id = create_repo(repo_id, exist_ok=True, private=private, token=token).repo_id
            has_card = has_card or file_exists(repo_id, CARD_FILE_NAME, token=token)
        if not has_card:
            card.write_text(self.model_card(repo_id), encoding="utf-8")
        if not loader.exists():
            loader.write_text(LOADER, encoding="utf-8")
        self._save_licence(folder / LICENCE_FILE_NAME)
        if not push_to_hub:
            return None
        return self._upload_folder(folder, repo_id, **kwargs)

    def _save_licence(self, target: Path) -> None:
        source = self.origin and self.origin / LICENCE_FILE_NAME
        if not source or not source.is_file() or target.exists():
            return
        if source.stat().st_size <= _LARGEST_TEXT_BYTES:
            shutil.copyfile(source, target)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Save into a temporary folder and upload it; ``kwargs`` are those of ``save_pretrained``."""
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **kwargs)

    def model_card(self, name: str) -> str:
        """Return a model card: metadata of the hub, use, sizes. ``name`` is what the model is loaded by."""
        licence = licence_of(self.origin) if self.origin else UNKNOWN_LICENCE
        metadata = ModelCardData(
            license=licence,
            library_name="diffusers",
            pipeline_tag="text-to-video",
            tags=["hummingbird", "text-to-video"],
        )
        sizes = [
            f"| `{component}` | {type(module).__name__} | {sum(p.numel() for p in module.parameters()):,} |"
            for component, module in self.components.items()
            if isinstance(module, torch.nn.Module)
        ]
        call = self.default_call
        return _CARD.format(
            metadata=metadata.to_yaml(),
            name=name,
            kind="few-step" if self.has_guidance_embedding else "many-step",
            steps=call["num_inference_steps"],
            frames=call["num_frames"],
            height=call["height"],
            width=call["width"],
            fps=call["fps"],
            components="\n".join(sizes),
            licence="that of the weights which this model was made from; name it in the metadata above."
            if licence == UNKNOWN_LICENCE
            else f"`{licence}`, that of the model which this one was made from. Say so if yours differs.",
        )
