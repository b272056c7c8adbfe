"""OpenCLIP's tokenizer as a tokenizer of transformers: same ids, zero padding."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

from transformers import CLIPTokenizer

OPEN_CLIP_VOCABULARY_SIZE = 49408
_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_NUM_BYTES = 256


def open_clip_tokenizer(context_length: int = 77) -> CLIPTokenizer:
    """Build the tokenizer of OpenCLIP's text towers from the merge list that open_clip ships.

    OpenCLIP pads with id 0, which is also the id of "!" inside words. The tokenizer therefore declares "!" as
    its padding but never reads special tokens in a text (``split_special_tokens``), so that a typed "!" keeps
    its own id. OpenCLIP also repairs texts first: see ``hummingbird.pipelines.prompts.clean_prompt``.

    Args:
        context_length: Tokens per text; longer texts are cut and end in the end token.

    Raises:
        FileNotFoundError: Where open_clip is not installed or lacks its merge list.
    """
    spec = importlib.util.find_spec("open_clip")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    path = next((Path(folder) / _VOCABULARY_FILE for folder in folders), Path(_VOCABULARY_FILE))
    if not path.is_file():
        raise FileNotFoundError(f"{_VOCABULARY_FILE} of open_clip was not found: pip install open_clip_torch")
    letters = _byte_letters()
    num_merges = OPEN_CLIP_VOCABULARY_SIZE - 2 * _NUM_BYTES - 2
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : num_merges + 1]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        pad_token="!",
        model_max_length=context_length,
        split_special_tokens=True,
    )


def _byte_letters() -> list[str]:
    """Return one printable letter per byte, in byte-level BPE's order: printable bytes first, then the
    others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = _NUM_BYTES - len(printable)
    return [chr(byte) for byte in printable] + [chr(_NUM_BYTES + index) for index in range(others)]
