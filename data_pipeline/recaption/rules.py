"""Cleans captions that were written for search engines: alt-text, stock-site titles, file names.

Only what is said *about* the file goes (who sells it, its number, its resolution); what is said about the
picture stays, in its words and its order. Nothing is added.
"""

from __future__ import annotations

import html
import re
import unicodedata

__all__ = ["clean_caption"]

MAX_CHARS = 4000
"""Longer captions are cut here first: the patterns below then take a bounded time."""
_MAX_PASSES = 5

_SITES = (
    "shutterstock|getty ?images?|getty|i-?stock(?: ?photos?)?|pond ?5|adobe ?stock|alamy|dreamstime"
    "|deposit ?photos|"
    "123rf|video ?blocks|story ?blocks|video ?hive|envato(?: elements)?|art ?grid|motion ?array|vecteezy"
    "|pexels|"
    "pixabay|unsplash|freepik|canva|big ?stock(?: ?photos?)?|fotolia|can ?stock ?photo|stocksy|filmsupply|"
    "film ?pac|dissolve\\.com|webvid"
)
_MEDIA = "videos?|footages?|clips?|photos?|photographs?|pictures?|images?|vectors?|illustrations?|b-?roll"
_RESOLUTION = (
    r"\d{3,5} ?[x×] ?\d{3,4}(?: ?(?:px|pixels))?|\d{3,4}[pi]|[24568]k|uhd|fhd|qhd|(?:full|ultra) ?-?hd|hd"
    r"|hdr(?:10)?|"
    r"prores(?: ?\d+)?|h\.?26[45]|\d{2,3}(?:\.\d+)? ?fps|(?:8|10|12) ?-?bit|high[- ]definition"
)
_FILE = (
    "mp4|m4v|mov|avi|mkv|webm|wmv|flv|mpe?g|ts|gif|jpe?g|png|tiff?|bmp|webp|"
    "heic|svg|eps|psd|ai|raw|cr2|nef|zip"
)


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE)


_TAG = re.compile(r"<[!/?]?[a-zA-Z][^<>]{0,500}>|<!--.{0,500}?-->", re.DOTALL)
_URL = re.compile(
    r"(?:https?://|www\.)\S+|(?<![\w@.])[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+"
    r"|(?<![\w@.-])(?:[\w-]{1,64}\.){1,4}(?:com|net|org|info|biz|tv|io|co\.uk|de|fr|ru)(?:/\S*)?(?!\w)",
    re.IGNORECASE,
)
_HANDLE = re.compile(r"(?<!\w)@\w{2,64}")
_TAG_RUN = re.compile(r"(?:(?<!\w)#\w*[^\W\d]\w*[\s,]*){2,}|(?<!\w)#\w*[^\W\d]\w*[\s.!]*$")
_HASHTAG = re.compile(r"(?<!\w)#(?=\w*[^\W\d])")
_FILE_NAME = re.compile(rf"(?<!\w)[\w()+-]{{1,120}}\.(?:{_FILE})(?!\w)", re.IGNORECASE)
_CAMERA_NAME = re.compile(
    r"(?<!\w)(?:IMG|DSCN?|DSCF|MVI|MOV|GOPR|GX|GH|PXL|VID|DJI|DCIM|CLIP|SHUTTERSTOCK|STOCK)[_-]?\d{3,}[\w-]*",
    re.IGNORECASE,
)
_ID = re.compile(
    r"(?<!\w)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?!\w)"
    r"|(?<!\w)(?:(?:asset|item|file|media)\s+)?(?:id|no|nr|number)\s*[.:#=-]?\s*#?[\w-]*\d[\w-]{3,}"
    rf"|(?<!\w)(?:(?:{_MEDIA}|asset|item|file)\s+)?(?:#|№)\s?\d{{2,}}(?!\w)"
    r"|(?<![\w.,])[A-Za-z]{0,4}[-_]?\d{6,}(?![\w,])",
    re.IGNORECASE,
)
_NOTICES = _words(
    r"royalty[- ]?free|rights[- ]managed|(?:for )?editorial use only|editorial only|all rights reserved|"
    r"(?:free )?downloads?(?: now| here| free)?|buy now|model released?|property released?|"
    r"(?:with(?: a)? |no |without (?:a )?)?watermark(?:ed|s)?|(?:low|high)[- ]?res(?:olution)?(?: preview)?|"
    r"(?:preview|comp) (?:image|video|of)|copyright(?: by| \(c\))?(?: \d{4})?|\(c\)(?: \d{4})?|©(?: ?\d{4})?|"
    r"credit(?:s)? ?:|source ?:|getty images/\w+"
)
_SITE = re.compile(
    rf"(?:(?<!\w)(?:by|from|on|via|at|courtesy of|available on|visit)\s+)?(?<![\w-])(?:{_SITES})(?:\.com"
    rf"|\.net)?(?![\w-])",
    re.IGNORECASE,
)
# "4K stock footage of a dog", "Stock video clip:" -- the words for the medium go with what stood before them.
_ABOUT_THE_FILE = rf"(?:(?:{_RESOLUTION})[\s,]+)"
_STOCK = _words(
    rf"{_ABOUT_THE_FILE}*(?:free )?stock(?:[ -]?(?:{_MEDIA}))+(?: (?:of|showing|with))?"
    rf"|{_ABOUT_THE_FILE}+(?:(?:{_MEDIA})[ ]?)+(?:(?:of|showing) )?"
    rf"|{_RESOLUTION}"
)
_SEPARATORS = re.compile(r"\s*[|•·»«¦]+\s*|\s+[-~/:]+\s+|\s*--+\s*|\s*_{2,}\s*|\s*;+\s*$")
_EMPTY_BRACKETS = re.compile(r"[(\[{][\s,.:;#-]*[)\]}]")
_BEFORE = str.maketrans(
    {"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "‚": "'", "`": "'", "…": "...", "–": "-"}
    | dict.fromkeys("™®℠")
)
_AFTER = str.maketrans({"—": " - ", "_": " "})
"""File names need their underscores to be known."""


def clean_caption(text: str) -> str:
    """The caption without stock-site words, numbers, resolutions, file names, links, tags and markup.

    Args:
        text: any text; of over ``MAX_CHARS`` characters only these are looked at.

    Returns:
        One line in Unicode's NFKC form; empty where nothing of the text says anything. Cleaning it again
        changes nothing.
    """
    text = text[:MAX_CHARS]
    for _ in range(_MAX_PASSES):
        cleaned = _clean_once(text)
        if cleaned == text:
            break
        text = cleaned
    return text if any(character.isalpha() for character in text) else ""


def _clean_once(text: str) -> str:
    text = _TAG.sub(" ", html.unescape(text))
    text = unicodedata.normalize("NFKC", text.translate(_BEFORE))
    text = "".join(_printable(character) for character in text)
    for pattern in (_URL, _HANDLE, _FILE_NAME, _CAMERA_NAME, _ID, _TAG_RUN):
        text = pattern.sub(" ", text)
    text = _HASHTAG.sub("", text)
    text = " ".join(text.translate(_AFTER).split())
    for pattern in (_NOTICES, _SITE, _STOCK):
        text = pattern.sub(" ", text)
    return _sentence(_punctuation(text))


def _printable(character: str) -> str:
    """Control characters become blanks; invisible ones, private ones and pictographs go."""
    category = unicodedata.category(character)
    if category in ("Cf", "Co", "Cs", "Cn"):
        return ""
    if category in ("Cc", "Zl", "Zp", "So", "Sk"):
        return character if character in "©°" else " "
    return character


def _punctuation(text: str) -> str:
    text = _EMPTY_BRACKETS.sub(" ", text)
    text = _SEPARATORS.sub(", ", text)
    text = re.sub(r"([!?.,;:])(?:\s*\1)+", r"\1", text)
    text = re.sub(r"\s+([!?.,;:)\]])", r"\1", text)
    text = re.sub(r"([(\[])\s+", r"\1", text)
    text = re.sub(r"[,;:]\s*(?=[,;:.!?])", "", text)
    text = re.sub(r",(?=[^\W\d])", ", ", text)
    text = " ".join(text.split()).strip(" ,;:|/~*=+<>\\-#&")
    for opening, closing in ("()", "[]", "{}"):
        if text.count(opening) != text.count(closing):
            text = text.replace(opening, " ").replace(closing, " ")
    if text.count('"') % 2:
        text = text.replace('"', " ")
    text = re.sub(r"^(?:of|showing|by|and|in)\s+(?=\w)", "", " ".join(text.split()), flags=re.IGNORECASE)
    text = re.sub(rf"(?:^|,\s*)(?:stock ?)?(?:{_MEDIA})$", "", text, flags=re.IGNORECASE)
    return re.sub(r"\s+(?:by|from|on|via|and|of|in|the)$", "", text, flags=re.IGNORECASE).strip(" .,:")


def _sentence(text: str) -> str:
    """Text in capitals becomes a sentence; the first letter is a capital."""
    letters = [character for character in text if character.isalpha()]
    if len(letters) >= 8 and " " in text and all(not character.islower() for character in letters):
        text = text.lower()
    return text[:1].upper() + text[1:]
