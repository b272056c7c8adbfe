"""Token ids against OpenCLIP's: those recorded from the original, and those of the installed open_clip."""

from __future__ import annotations

import open_clip
import pytest
import torch

from hummingbird.checkpoints import open_clip_tokenizer
from hummingbird.pipelines.prompts import clean_prompt
from tests.golden_files import golden_config, golden_tensors

ODD_PROMPTS = [
    "a! b!! !",
    "!",
    "&lt;b&gt; x &amp; y",
    "it\u2019s \u201cquoted\u201d \u2026 \ufb01ne",
    "\u65e5\u672c\u8a9e \u30c6\u30b9\u30c8 \U0001f600",
    "hello_world don't we'll",
    "a\u00a0b",
    "x" * 200,
    "cat " * 100,
    "",
]


def token_ids(tokenizer, prompts: list[str]) -> torch.Tensor:
    """Tokenize as the pipeline does."""
    return tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


@pytest.fixture(scope="module", params=["built", "saved and loaded"])
def tokenizer(request, tmp_path_factory):
    built = open_clip_tokenizer()
    if request.param == "built":
        return built
    folder = tmp_path_factory.mktemp("tokenizer")
    built.save_pretrained(folder)
    return type(built).from_pretrained(folder)


@pytest.mark.golden
def test_recorded_ids(tokenizer):
    prompts = golden_config("text_encoder_tiny")["prompts"]
    assert torch.equal(token_ids(tokenizer, prompts), golden_tensors("text_encoder_tiny/inputs")["tokens"])


def test_ids_of_the_installed_open_clip(tokenizer):
    assert torch.equal(token_ids(tokenizer, ODD_PROMPTS), open_clip.get_tokenizer("ViT-H-14")(ODD_PROMPTS))


def test_padding_is_zero_and_exclamation_marks_survive(tokenizer):
    assert tokenizer.pad_token_id == 0
    assert len(tokenizer) == 49408
    assert token_ids(tokenizer, ["a!"])[0, :5].tolist() == [49406, 320, 256, 49407, 0]
