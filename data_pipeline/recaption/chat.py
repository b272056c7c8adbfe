"""What a chat backend is: a prompt and pictures in, one answer out; and how it says that it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Chat", "NoReply", "Reply"]


class NoReply(Exception):
    """A question that got no answer after every try.

    Args:
        reason: short name that rows are counted by, e.g. ``server: timeout``.
        detail: one line for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer as it came.

    Attributes:
        is_cut_off: the limit of tokens ended it.
    """

    text: str
    is_cut_off: bool


class Chat(Protocol):
    """A language model."""

    @property
    def identity(self) -> str:
        """Name of the model for cache keys: the same name, the same answers."""
        ...

    @property
    def threads(self) -> int:
        """How many questions may be asked at the same time."""
        ...

    def ask(self, prompt: str, images: Sequence[bytes]) -> Reply:
        """Answer one prompt.

        Args:
            prompt: the user's message.
            images: JPEG files to look at, in their order in time.

        Raises:
            NoReply: no answer could be had for this prompt.
            EngineError: no prompt will get an answer: wrong address, model or key.
        """
        ...

    def close(self) -> None:
        """End what waits, and let go of connections and memory."""
        ...
