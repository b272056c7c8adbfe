"""What a language model may not do to a caption, and captions that may not reach a language model.

Each check has a name; the name is the row's ``caption_note`` when the original caption stays because of it.
All of them are heuristics over the text alone; docs/recaption.md says what they cannot see.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

__all__ = ["GUARDS", "Guards", "clip_tokens", "looks_injected", "tidy"]

GUARDS = {
    "no caption": "the clip has no caption, or none is left of it after the rules, and no frames are sent",
    "injection": "the source caption talks to the model; it is never sent",
    "empty": "the answer has no word",
    "refusal": "the answer is about what the model can or will do, not about the video",
    "cut off": "the answer ended at `max_new_tokens`, in the middle of something",
    "echo": "the answer repeats the instruction, or the marks around the caption",
    "wrong language": "other letters than Latin ones, or more function words of another language than "
    "English ones",
    "too long": "over `max_clip_tokens` tokens of CLIP's tokenizer",
    "no overlap": "too few of the source caption's content words come back",
}
"""Name -> what it finds, in the order in which they are asked; the first two before the model is asked."""

_ECHO_WORDS = 6
"""A sequence of so many words from the instruction is an echo; captions share shorter ones by chance."""
_MIN_LATIN = 0.9
_WORD = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)?")

_REFUSAL = re.compile(
    r"^(?:i'?m|i am|we'?re|we are) (?:sorry|afraid|unable|not able|just an?|only an?|an? (?:ai|large"
    r"|language|text))\b"
    r"|^(?:sorry|apologies|unfortunately|regrettably)\b"
    r"|^i (?:can'?t|cannot|can not|won'?t|will not|do not|don'?t|couldn'?t|could not|must decline"
    r"|have to decline|need more)\b"
    r"|\bas an? (?:ai|artificial intelligence|large language|language) ?(?:language )?(?:model|assistant)?\b"
    r"|\bi (?:can'?t|cannot|am unable to|am not able to) (?:help|assist|comply|provide|see|view|watch"
    r"|access|rewrite|describe|create|generate)"
    r"|\bagainst (?:my|our|the) (?:guidelines|policy|policies|programming)\b"
    r"|^(?:please|could you|can you) (?:provide|share|give|send|upload)\b"
    r"|^(?:there is |there's )?no (?:caption|video|image|text|description)s? (?:was |were |is |has been )?"
    r"(?:provided|given|available|found|to )",
    re.IGNORECASE,
)

_INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass|skip)\b(?:\W+\w+){0,4}?\W+"
    r"(?:instructions?|prompts?|rules?|guidelines?|directions?|commands?|everything (?:above|before)"
    r"|(?:said|written) above)\b"
    r"|\b(?:ignore|disregard|forget) (?:all|everything|anything) (?:above|before|previous|prior|else)\b"
    r"|\b(?:new|updated|real|actual|following|your|hidden|secret|system) (?:instructions?|prompt|task"
    r"|orders?) ?(?::|is|are)\b"
    r"|\b(?:system|developer|hidden|initial) (?:prompt|message|instructions?)\b"
    r"|\b(?:reveal|print|repeat|output|show|leak) (?:me )?your (?:(?:system|initial|hidden"
    r"|full) )?(?:prompt|instructions?)\b"
    r"|\byou (?:are now|must now|will now|are no longer)\b|\bfrom now on,? you\b"
    r"|\bpretend (?:you are|that you)\b|\bpretend to be an? (?:ai|assistant|model|chat ?bot)\b"
    r"|\b(?:respond|reply|answer|output)\W+(?:\w+\W+){0,2}?(?:only|exactly|nothing but|just)\b"
    r"|\b(?:say|write|return|print) (?:only|exactly|nothing but)\b"
    r"|\b(?:only|exactly|just) (?:respond|reply|answer|output|return|print)\b"
    r"|\binstead(?: of)?,? (?:captioning|describing|rewriting|output|respond|reply|answer|write|say)\b"
    r"|\b(?:do not|don'?t|never|stop) (?:rewrite|rewriting|caption|captioning|describe|describing|follow)\b"
    r"|\bjail ?break|\bdeveloper mode\b|\bDAN mode\b|\bprompt injection\b"
    r"|<\|[^|<>]{1,40}\|>|</?(?:caption|system|user|assistant|instructions?|prompt|s|think|tool_call)>"
    r"|\[/?INST\]|<</?SYS>>|#{2,} ?(?:instructions?|system|user|assistant|response)\b"
    r"|(?:^|\n) ?(?:system|assistant) ?:",
    re.IGNORECASE,
)
# Unicode's tag block: letters that nobody sees and every tokenizer reads.
_HIDDEN = re.compile("[\U000e0020-\U000e007e]{4,}")

_FUNCTION_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "English": "a an the of in on at with and is are to from by for over under near while into through "
        "as his her "
        "their its it this that two up down",
        "German": "der die das ein eine einen einem einer und ist sind mit auf im am von zu den dem des "
        "sich nicht für "
        "über unter während aus bei wird",
        "French": "le la les un une des du de et est sont avec sur dans en au aux pour par qui que se sa "
        "son ses leur sous",
        "Spanish": "el la los las un una unos de del y es son con en por para que se su sus al sobre está "
        "están mientras",
        "Italian": "il lo la gli le un una di del della e è sono con su nel nella per che si dal dei al "
        "mentre sul sulla",
        "Portuguese": "o a os as um uma de do da dos das e é são com em no na nos por para que se ao sobre "
        "enquanto está",
        "Dutch": "de het een en is zijn met op in van te aan door naar voor uit bij over onder terwijl die "
        "dat",
    }.items()
}
_MORE_STOP_WORDS = """
be been being was were has have had there here he she they them who which what or but not no very some any all
other each one video clip footage shot scene camera view showing shows show seen appears depicts image picture
"""
_STOP_WORDS = _FUNCTION_WORDS["English"].union(_MORE_STOP_WORDS.split())
_LEAD_IN = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok|absolutely|yes|great)\b[^\n:]{0,80}[:!.,]\s*)?"
    r"(?:(?:here(?:'s| is| are)|this is|below is)\b[^\n:]{0,80}:\s*|"
    r"(?:the )?(?:rewritten|new|improved|cleaned|final|revised|video)?\s*(?:caption|description|answer"
    r"|output)\s*:\s*)?",
    re.IGNORECASE,
)
_THINKING = re.compile(r"^\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^```\w*\s*|\s*```$")


def tidy(answer: str) -> str:
    """A model's answer without what chat models put around it: thoughts, a lead-in, fences, quotes, markup.

    Returns:
        One line in NFKC form.
    """
    text = _THINKING.sub("", unicodedata.normalize("NFKC", answer))
    text = text.strip().translate(str.maketrans("“”‘’", "\"\"''"))
    text = re.sub(r"\*{1,3}|(?<!\w)_{1,2}(?=\w)|(?<=\w)_{1,2}(?!\w)", "", _FENCE.sub("", text))
    text = _LEAD_IN.sub("", text.strip(), count=1)
    text = "".join(
        character if unicodedata.category(character)[0] != "C" else " " * character.isspace()
        for character in text
    )
    text = " ".join(text.split())
    for quote in "\"'":
        if len(text) > 1 and text[0] == text[-1] == quote and quote not in text[1:-1]:
            text = text[1:-1].strip()
    return text


def looks_injected(caption: str) -> bool:
    """Whether a source caption reads as if it were meant for a language model and not for people."""
    if _HIDDEN.search(caption):
        return True
    visible = "".join(
        character
        for character in unicodedata.normalize("NFKC", caption)
        if unicodedata.category(character) != "Cf"
    )
    return _INJECTION.search(visible) is not None


@cache
def _tokenizer() -> Callable[[str], list[int]]:
    from open_clip.tokenizer import SimpleTokenizer  # its vocabulary is part of the package

    encode: Callable[[str], list[int]] = SimpleTokenizer().encode
    return encode


def clip_tokens(text: str) -> int:
    """Number of tokens that CLIP's text tower gets for a text, the start and end marks included."""
    return len(_tokenizer()(text)) + 2


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(unicodedata.normalize("NFKC", text))]


def _stem(word: str) -> str:
    """Crude on purpose: "dogs" and "dog", "running" and "runs" meet; nothing rests on it alone."""
    word = word.removesuffix("'s")
    for ending in ("ing", "ers", "er", "ies", "es", "ed", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _content(text: str) -> set[str]:
    return {_stem(word) for word in _words(text) if word not in _STOP_WORDS and len(word) > 1}


def _share_latin(text: str) -> float:
    letters = [character for character in text if character.isalpha()]
    return sum("LATIN" in unicodedata.name(letter, "") for letter in letters) / max(1, len(letters))


def _is_english(text: str) -> bool:
    """Script, then function words; short texts without any function word pass."""
    if _share_latin(text) < _MIN_LATIN:
        return False
    words = _words(text)
    counts = {language: sum(word in listed for word in words) for language, listed in _FUNCTION_WORDS.items()}
    english = counts.pop("English")
    others = max(counts.values())
    return others < 2 or english >= others


@dataclass(frozen=True, kw_only=True)
class Guards:
    """The checks of an answer, with what they compare it to.

    Attributes:
        instruction: the prompt without the caption.
        language: ``en`` or ``any``.
        min_overlap: share of the source's content words, in [0, 1], that must come back; 0 asks for none.
        max_clip_tokens: of CLIP's tokenizer, start and end marks included.
    """

    instruction: str
    language: str
    min_overlap: float
    max_clip_tokens: int

    def check(self, text: str, source: str, *, is_cut_off: bool) -> str | None:
        """The first guard that objects, by its name in ``GUARDS``; None where none does.

        Args:
            text: the answer after ``tidy``.
            source: the caption that the model was given; empty where it had none.
            is_cut_off: the model was stopped by its limit of tokens.
        """
        if not any(character.isalpha() for character in text):
            return "cut off" if is_cut_off else "empty"
        if _REFUSAL.search(text):
            return "refusal"
        if is_cut_off:
            return "cut off"
        if self._is_echo(text, source):
            return "echo"
        if self.language == "en" and not _is_english(text):
            return "wrong language"
        if clip_tokens(text) > self.max_clip_tokens:
            return "too long"
        if not self._overlaps(text, source):
            return "no overlap"
        return None

    def _is_echo(self, text: str, source: str) -> bool:
        if re.search(r"</?caption>|&lt;/?caption", text, re.IGNORECASE):
            return True
        instruction, words = _words(self.instruction), _words(text)
        given = _sequences(_words(source))
        return bool((_sequences(words) & _sequences(instruction)) - given)

    def _overlaps(self, text: str, source: str) -> bool:
        wanted = _content(source)
        if not wanted or self.min_overlap == 0 or _share_latin(source) < _MIN_LATIN:
            return True  # nothing to compare with: no words, or those of another script
        shared = len(wanted & _content(text))
        return shared > 0 and shared / len(wanted) >= self.min_overlap


def _sequences(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[index : index + _ECHO_WORDS]) for index in range(len(words) - _ECHO_WORDS + 1)}
