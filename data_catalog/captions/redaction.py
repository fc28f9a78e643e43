"""Captions without the personal text that someone read off the image: licence plates, names, numbers.

What is found is taken out together with the words that introduce it ("reading", "named", "with"), so that
the sentence stays a sentence:

    A white SUV with the license plate 粤B12345 parked outside.  ->  A white SUV with the license plate
    parked outside.

The rules know only patterns of characters. In doubt they remove too much: `GLC300` is a plate unless a make
stands before it, while `4x4`, `SUV`, `BMW X5` and `F-150` stay.
"""

# ruff: noqa: RUF001 - Chinese captions have Chinese punctuation.

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

REDACTION_VERSION = 2
"""Raised when the rules change, so that captions are redacted again."""

_HIDDEN = "\ue000"
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PROVINCES = "京津冀晋蒙辽吉黑沪苏浙皖闽赣鲁豫鄂湘粤桂琼渝川贵云藏陕甘青宁新使领"
# Groups of a plate after the first hold a digit, so that a word in capitals is not swallowed with it.
_PLATE_TOKEN = (
    r"(?:[A-Z]{2}\d{2}\s[A-Z]{3}|[A-Z0-9](?:[A-Z0-9]|[·•.\-\s](?=[A-Z]{0,3}\d)|-(?=[A-Z0-9])){1,11})(?![\w-])"
)
# Where the word "plate" stands before it, it may be written in any case, and end in capitals.
_NAMED_PLATE = (
    r"(?:(?i:(?=[A-Z0-9·•.\-]*\d)[A-Z0-9](?:[A-Z0-9]|[·•.\-](?=[A-Z0-9])){1,11})(?![\w-])|"
    + _PLATE_TOKEN
    + r")(?:\s[A-Z]{1,3}(?![\w-]))?"
)
_LINKS = (
    r"(?:(?:,?\s+(?:which|that|is|was|reads?|reading|says?|saying|shows?|showing|displays?|displaying|numbers?|"
    r"numbered|no\.?|with|being|of|as|the|starting|beginning|ending|in|letters|digits|characters|text|partly|"
    r"partially|clearly|visible)\b)|\s*[:：#]){0,6}"
)
_FINDERS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "quote",
        # A quote after a digit is an inch, and one within a word an apostrophe.
        re.compile(
            r"(?<!\d)\"[^\"\n]{1,200}\"|“[^”]{1,200}”|‘[^’]{1,200}’|«[^»]{1,200}»|「[^」]{1,200}」|"
            r"『[^』]{1,200}』|(?<!\w)'[^'\n]{1,80}'(?!\w)"
        ),
    ),
    ("email", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:https?://|www\.)[^\s,;]+[^\s,;.]", re.IGNORECASE)),
    (
        "plate",
        re.compile(rf"[{_PROVINCES}]\s?[A-Z]\s?[·•・.\-]?\s?[A-Z0-9]{{4,6}}[挂学警港澳]?", re.IGNORECASE),
    ),
    ("phone", re.compile(r"(?<!\w)(?!\d{4}-\d\d-\d\d)[+(]?\d(?:[\s().\-/]{0,2}\d){6,14}(?!\w)")),
    (
        "plate",
        re.compile(
            r"(?i:(?<=plate)|(?<=plates)|(?<=registration)|(?<=plate number)|(?<=registration number))"
            rf"(?P<kept>(?i:{_LINKS})\s*){_NAMED_PLATE}"
        ),
    ),
    ("number", re.compile(r"(?P<kept>\bnumber(?:ed)?\s+)#?\d{1,4}(?!\w)", re.IGNORECASE)),
    (
        "name",
        re.compile(r"(?P<kept>(?i:\b(?:words?|letters|logo|lettering))\s+)(?:[A-Z][\w&'’-]*\s*){1,4}(?<!\s)"),
    ),
    ("plate", re.compile(rf"(?P<kept>车牌(?:号码|号)?(?:是|为|显示为|显示)?[:：]?\s*){_PLATE_TOKEN}")),
    ("name", re.compile(r"(?<!-)\b(?:named|called|nicknamed)(?:\s+[A-Z][\w'’-]*){1,4}")),
    ("name", re.compile(r"\b(?:Mr|Mrs|Ms|Miss|Dr)\.?(?:\s+[A-Z][\w'’-]+){1,3}")),
    (
        "name",
        re.compile(r"\b(?:reads?|reading|says?|saying|spelling)\s+(?:(?:[A-Z0-9][\w&'’-]*)\s*){1,4}(?<!\s)"),
    ),
)
_BARE_PLATE = re.compile(
    r"(?<![\w.-])(?:[A-Z]{2}\d{2}\s[A-Z]{3}|[A-Z]{2,3}\s\d{3,5}|[A-Z0-9]+(?:[-·•][A-Z0-9]+){0,2})(?![\w-])"
)
_HAN_RUN = re.compile(rf"[{_HAN}]+")
# After a maker's name stands a model, and after "series" or "SUV" no plate either.
_NOT_BEFORE_A_PLATE = frozenset(
    re.findall(
        r"\S+",
        """acura audi baojun benz bmw buick byd cadillac chery chevrolet citroen class dongfeng ford foton gac
        geely haval honda hongqi hyundai infiniti isuzu iveco jac jaguar jeep jinbei kia lexus lincoln mazda
        mercedes mercedes-benz mg mitsubishi model nissan peugeot porsche renault roewe rover scania series
        skoda subaru suv suzuki tesla toyota trumpchi volkswagen volvo vw wuling""",
    )
)
_SPEAKS = r"(?:is|are|was|reads?|says?|shows?|displays?|spells?)"
_OWNER = r"(?:the|its|his|her|their|a|an|one)"
# What is said of, without a verb of its own: "license plate", "name on the sign".
_THING = rf"(?:(?!{_SPEAKS}\b|that\b|which\b|and\b|whose\b)[\w-]+\s+)"
_WORDS = r"(?:text|words?|letters?|name|slogan|inscription|characters|e-?mail|phone|number)"
_CLEANERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), to)
    for pattern, to in (
        (rf"{_HIDDEN}(?:[\s,;、]*(?:(?:and|or)\s+)?{_HIDDEN})+", _HIDDEN),
        (r"车牌(?:号码|号)?(?:是|为|显示为|显示)?[:：]?\s*" + _HIDDEN, _HIDDEN),
        (rf"[\s,]*\bwhose\s+{_THING}{{1,4}}{_SPEAKS}\s*[:：]?\s*{_HIDDEN}", _HIDDEN),
        # A sentence or clause that says nothing else goes as a whole.
        (rf"(?:^|(?<=[.!?]\s)){_OWNER}\s+{_THING}{{1,6}}{_SPEAKS}\s*[:：]?\s*{_HIDDEN}\s*(?:[.!?]|$)", ""),
        (
            rf"\s*(?:[,;]\s*)?(?:\b(?:and|while|where|with)\s+)?\b{_OWNER}\s+{_THING}{{1,4}}{_SPEAKS}"
            rf"\s*[:：]?\s*{_HIDDEN}",
            "",
        ),
        (rf"[\s,]*\b(?:tele)?(?:phone|tel|e-?mail)(?:\s+number)?\s*[.:]?\s*{_HIDDEN}", _HIDDEN),
        # "that reads", "marked with the number", "on it" belong to what was hidden.
        (
            rf"[\s,]*\b(?:(?:which|that)\s+)?(?:{_SPEAKS}|reading|saying|showing|displaying|spelling|"
            r"(?:labell?ed|marked|printed|numbered|written)(?:\s+(?:with|as))?|named|called|nicknamed|being|"
            rf"(?:starting|beginning|ending)\s+(?:in|with))(?:\s+the)?(?:\s+{_WORDS})?\s*[:：]?\s*{_HIDDEN}",
            _HIDDEN,
        ),
        (
            r"[\s,]*\b(?:with|bearing|wearing|featuring|having|has|at|to|from|as|of|by)\s+(?:(?:the|a|an)\s+)?"
            rf"(?:{_WORDS}\s+)*{_HIDDEN}(?:\s+(?:written|printed|painted))?(?:\s+on\s+(?:it|the\s+\w+))?",
            _HIDDEN,
        ),
        (rf"\s*\(\s*{_HIDDEN}\s*\)|\s*[:：#]\s*{_HIDDEN}", _HIDDEN),
        (rf"\s*{_HIDDEN}", ""),
        (r"\s+([,.;:!?，。；：！？])", r"\1"),
        (r"([,;:，；：])(?=\s*[,.;:!?，。；：！？])", ""),
        (r"\.(?:\s*\.)+", "."),
        (r"^[\s,.;:!?，。；：！？]+", ""),
        (r"[\s,;:，；：]+$", ""),
        (r"(?<=\w)\s+(?:and|with|that|which)(?=\s*(?:[.!?]|$))", ""),
    )
)


@dataclass(frozen=True)
class Redacted:
    """A text without its personal parts.

    Attributes:
        text: What is left; the text itself where nothing was found.
        counts: How many parts were taken out, by kind (`plate`, `quote`, `phone`, `email`, `name`, `number`,
            `foreign`).
    """

    text: str
    counts: Mapping[str, int]


def redact(text: str) -> Redacted:
    """The text without licence plates, quoted text, phone numbers, e-mail and web addresses, and names.

    Names are what follows "named", "called", "reads" or "says" with a capital. Chinese within a text that is
    mostly in Latin letters was read off the image and goes too; in a Chinese text only plates do.
    """
    counts: Counter[str] = Counter()
    hidden = text.replace(_HIDDEN, "")
    for kind, pattern in _FINDERS:

        def hide(match: re.Match[str], kind: str = kind) -> str:
            counts[kind] += 1
            return match.groupdict().get("kept", "") + _HIDDEN

        hidden = pattern.sub(hide, hidden)
    hidden = _hide_bare_plates(hidden, counts)
    if len(_HAN_RUN.findall(hidden)) and _is_mostly_latin(hidden):
        hidden, found = _HAN_RUN.subn(_HIDDEN, hidden)
        counts["foreign"] += found
    return Redacted(_tidy(hidden), dict(counts)) if counts else Redacted(text, {})


def _hide_bare_plates(text: str, counts: Counter[str]) -> str:
    def hide(match: re.Match[str]) -> str:
        token = match[0]
        before = re.search(r"([\w-]+)\s+$", text[: match.start()])
        words = [token.split()[0].lower(), *([before[1].lower()] if before else [])]
        if _NOT_BEFORE_A_PLATE.intersection(words) or not _has_plate_shape(token):
            return token
        counts["plate"] += 1
        return _HIDDEN

    return _BARE_PLATE.sub(hide, text)


def _has_plate_shape(token: str) -> bool:
    letters = sum(character.isalpha() for character in token)
    digits = sum(character.isdigit() for character in token)
    is_british = re.fullmatch(r"[A-Z]{2}\d{2}\s?[A-Z]{3}", token) is not None
    return is_british or (letters >= 1 and digits >= 3 and 5 <= letters + digits <= 8)


def _is_mostly_latin(text: str) -> bool:
    han = sum(map(len, _HAN_RUN.findall(text)))
    return sum(character.isascii() and character.isalpha() for character in text) > han


def _tidy(text: str) -> str:
    for pattern, to in _CLEANERS:
        text = pattern.sub(to, text)
    text = " ".join(text.split())
    return text if not re.search(r"\w", text) else text[:1].upper() + text[1:]
