"""Asks a chat model in a local folder, through transformers. Nothing is downloaded, no code of it is run.

One question at a time: a batch is padded, and padding changes the last bits of an answer with its company,
while a resumed run has to end with an unbroken run's bytes. For many clips a server (``openai``) is faster.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.engine import EngineError
from data_pipeline.journal import digest
from data_pipeline.recaption.chat import NoReply, Reply

if TYPE_CHECKING:
    from data_pipeline.stages.recaption import RecaptionConfig

__all__ = ["LocalChat"]


class LocalChat:
    """A ``Chat`` in this process.

    Args:
        settings: the stage's; ``model`` is a folder with ``config.json``, ``.safetensors``, a tokenizer or
            processor, and a chat template.

    The model is loaded for the first question: a run whose answers are all known needs none.
    """

    threads = 1

    def __init__(self, settings: RecaptionConfig) -> None:
        self._settings = settings
        self._folder = Path(settings.model)
        self._with_images = settings.num_frames > 0
        self.identity = f"transformers:{_fingerprint(self._folder)}"
        self._loaded: tuple[Any, Any] | None = None

    def _load(self) -> tuple[Any, Any]:
        """Processor (or tokenizer) and model.

        Raises:
            EngineError: the folder holds no such model.
        """
        import torch
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
        )

        device, dtype = self._settings.device, self._settings.dtype
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto" and device == "cpu":
            dtype = "float32"
        model_class = AutoModelForImageTextToText if self._with_images else AutoModelForCausalLM
        reader = AutoProcessor if self._with_images else AutoTokenizer
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor: Any = reader.from_pretrained(self._folder, **local)
            model: Any = model_class.from_pretrained(
                self._folder, dtype=dtype, use_safetensors=True, attn_implementation="sdpa", **local
            )
            model.to(device).eval()
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            raise EngineError(
                f"recaption.model: {self._folder} cannot be loaded as a chat model"
                f"{' that takes images' if self._with_images else ''} ({' '.join(str(error).split())[:300]})"
            ) from error
        if not getattr(processor, "chat_template", None):
            raise EngineError(
                f"recaption.model: {self._folder} has no chat template; expected a chat (instruct) model, "
                "with chat_template.jinja or a template in tokenizer_config.json"
            )
        return processor, model

    def close(self) -> None:
        """See ``Chat``."""
        self._loaded = None

    def ask(self, prompt: str, images: Sequence[bytes]) -> Reply:
        """See ``Chat``."""
        import torch

        if self._loaded is None:
            self._loaded = self._load()
        processor, model = self._loaded
        settings = self._settings
        inputs = self._inputs(processor, prompt, images).to(model.device)
        length = inputs["input_ids"].shape[1]
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and length + settings.max_new_tokens > limit:
            raise NoReply("model: prompt too long", f"{length} tokens of {limit}")
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if settings.temperature > 0:
            sampling = {"do_sample": True, "temperature": settings.temperature}
        with torch.random.fork_rng(), torch.no_grad():
            # ``generate`` draws from the global generator; its state depends on the question alone.
            torch.manual_seed(int(digest(settings.seed, prompt), 16) % 2**63)
            output = model.generate(**inputs, max_new_tokens=settings.max_new_tokens, **sampling)
        tokens = output[0, length:].tolist()
        ends = model.generation_config.eos_token_id
        has_ended = bool(tokens) and tokens[-1] in (ends if isinstance(ends, list) else [ends])
        return Reply(
            text=processor.decode(tokens, skip_special_tokens=True),
            is_cut_off=len(tokens) >= settings.max_new_tokens and not has_ended,
        )

    def _inputs(self, processor: Any, prompt: str, images: Sequence[bytes]) -> Any:
        from PIL import Image

        content: Any = prompt
        if self._with_images:
            pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
            content = [{"type": "image", "image": picture} for picture in pictures]
            content.append({"type": "text", "text": prompt})
        return processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


def _fingerprint(folder: Path) -> str:
    """Changes with any file of the folder; weights are told by size and date, reading them takes too long."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return digest([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])
