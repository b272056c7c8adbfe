"""A chat model of a few thousand weights, made and trained by the tests, and a real server in front of it.

It learns by heart what to answer to a few prompts; everything else gets whatever comes out.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for message in messages %}{{ '<user> ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
TEMPLATE_TEXT = "<user> {} <assistant> "
SPECIAL = ("<pad>", "<unk>", "<user>", "<assistant>", "<end>", "<image>")


PICTURE_TEMPLATE = (
    "{% for message in messages %}<user> {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
_SIDE, _PATCH = 28, 14


def _tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token for each word of the texts."""
    split = pre_tokenizers.WhitespaceSplit()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>", "<image>"],
        model_input_names=["input_ids", "attention_mask"],
        chat_template=TEMPLATE,
    )


def _text_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )


def _train(model: torch.nn.Module, batch: dict[str, torch.Tensor], steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = model(**batch).loss
        if loss.item() < 0.01:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"the tiny model has not learned its answers: loss {loss.item():.3f}")


def _batch(pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Asked and said tokens, padded on the right; only what is said counts in the loss."""
    longest = max(len(asked) + len(said) for asked, said in pairs)
    rows = [asked + said + [0] * (longest - len(asked) - len(said)) for asked, said in pairs]
    ids = torch.tensor(rows)
    labels = ids.clone()
    for row, (asked, said) in enumerate(pairs):
        labels[row, : len(asked)] = -100
        labels[row, len(asked) + len(said) :] = -100
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def make_chat_model(folder: Path, answers: Mapping[str, str], *, steps: int = 200) -> Path:
    """Train a two-layer Llama on prompt -> answer until it knows them, and save it with its chat template.

    Args:
        answers: what it is to say to each user's message.
    """
    tokenizer = _tokenizer(text for pair in answers.items() for text in pair)
    pairs = []
    for prompt, answer in answers.items():
        asked = tokenizer(TEMPLATE_TEXT.format(prompt))["input_ids"]
        pairs.append((asked, [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(_text_config(tokenizer))
    _train(model, _batch(pairs), steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_picture_model(
    folder: Path, prompt: str, answers: Mapping[str, Image.Image], *, steps: int = 200
) -> Path:
    """Train a tiny LLaVA to tell a few pictures apart, and save it with its processor.

    Args:
        prompt: the user's message beside the picture.
        answers: what it is to say -> the picture.
    """
    tokenizer = _tokenizer([prompt, *answers])
    size = {"height": _SIDE, "width": _SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": _SIDE}, crop_size=size, do_center_crop=True, resample=2
        ),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=PICTURE_TEMPLATE,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=_SIDE,
        patch_size=_PATCH,
        projection_dim=32,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text_config(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(_SIDE // _PATCH) ** 2,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pairs, pictures = [], []
    for answer, picture in answers.items():
        content = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]
        asked = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        pairs.append(
            (asked["input_ids"][0].tolist(), [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id])
        )
        pictures.append(asked["pixel_values"])
    _train(model, {**_batch(pairs), "pixel_values": torch.cat(pictures)}, steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """``transformers serve`` on a free port of loopback; gives the base URL, and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from transformers.cli.transformers import main; main()"
    words = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(log.parent)}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", start, *words], stdout=file, stderr=file, env=environment
        )
    try:
        deadline = time.monotonic() + 200
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if (
                    httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).status_code
                    == 200
                ):
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
