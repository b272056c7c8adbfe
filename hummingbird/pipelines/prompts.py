"""Prompts as the text encoders' training saw them."""

from __future__ import annotations

import html

import ftfy


def clean_prompt(text: str) -> str:
    """Repair broken characters, undo HTML escapes and collapse white space, as OpenCLIP does before it
    tokenizes.

    Plain text comes back as it is.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
