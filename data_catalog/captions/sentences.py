"""Makes a sentence from attributes: the templates of captions and of the small CLIP's training texts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

ABSENT = "none"
"""The value of an attribute that says there is nothing (no hat); it is left out of the sentence."""

_FIELD = re.compile(r"\{(\w+)(?:\|([^}]*))?\}")
# "a unicorn", "a European": written with a vowel, spoken with a consonant.
_SPOKEN_CONSONANT = re.compile(r"(uni|use|usu|eu|one\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Template:
    """How a sentence is put together.

    A phrase such as `"a {upper_colour} {upper_garment|top}"` holds attribute names; an unknown one is left
    out, or replaced by the word after the bar. A phrase of which no attribute is known is left out, and so
    is one that names something absent. A leading "a" becomes "an" before a vowel and goes before a plural.

    Attributes:
        subject: The phrase for the person or vehicle; it is written even if none of its attributes is known.
        clauses: The word that opens each clause, and the phrases listed in it.
        instead: Replacements for the words of a phrase, where other words read better.
    """

    subject: str
    clauses: tuple[tuple[str, tuple[str, ...]], ...]
    instead: Mapping[str, str] = field(default_factory=dict)


PERSON = Template(
    subject="a {age} {gender|person}",
    clauses=(
        ("with", ("{hair} hair",)),
        (
            "wearing",
            (
                "a {upper_colour} {upper_garment|top}",
                "a {lower_colour} {lower_garment|bottoms}",
                "{shoes_colour} {shoes|shoes}",
                "a {hat}",
                "{glasses}",
            ),
        ),
        ("carrying", ("a {bag}", "a {carried_object}")),
    ),
    instead=MappingProxyType(
        {
            "ponytail hair": "a ponytail",
            "bun hair": "a bun",
            "bald hair": "a bald head",
            "child man": "boy",
            "child woman": "girl",
            "child person": "child",
        }
    ),
)
VEHICLE = Template(
    subject="a {colour} {brand} {type|vehicle}",
    clauses=(("with", ("{lamps} lamps", "a {damage}", "a {accessory}")),),
)
TEMPLATES: Mapping[str, Template] = MappingProxyType({"person": PERSON, "vehicle": VEHICLE})
"""Name of a template, as a card has it, to the template."""


def write_caption(attributes: Mapping[str, str], template: Template) -> str:
    """The sentence that says what is known.

    For example "A photo of a young woman with long hair, wearing a red coat."

    Args:
        attributes: The values of the known attributes, by name.
        template: How to say them.

    Returns:
        The sentence, or "" if nothing is known.
    """
    if not attributes:
        return ""
    subject = _phrase(template.subject, attributes, template, always=True)
    parts = [f"A photo of {subject}"]
    for opening, phrases in template.clauses:
        listed = [text for phrase in phrases if (text := _phrase(phrase, attributes, template))]
        if listed:
            parts.append(f"{opening} {_join(listed)}")
    # "a man with short hair, wearing ...": only what follows the first clause is separated by commas.
    start = " ".join(parts[:2]) if len(parts) > 1 and parts[1].startswith("with ") else parts[0]
    rest = parts[2:] if start != parts[0] else parts[1:]
    return ", ".join([start, *rest]) + "."


def _phrase(phrase: str, attributes: Mapping[str, str], template: Template, always: bool = False) -> str:
    names = [match[1] for match in _FIELD.finditer(phrase)]
    values = {name: attributes[name].strip() for name in names if attributes.get(name, "").strip()}
    if not always and (not values or ABSENT in values.values()):
        return ""
    article, words = ("a", phrase[2:]) if phrase.startswith("a ") else ("", phrase)
    words = _FIELD.sub(lambda match: values.get(match[1], match[2] or ""), words)
    words = " ".join(words.split())
    words = template.instead.get(words, words)
    return _with_article(words) if article else words


def _with_article(words: str) -> str:
    if words.endswith("s") and not words.endswith("ss"):
        return words
    vowel = words[:1].lower() in "aeiou" and not _SPOKEN_CONSONANT.match(words)
    return f"{'an' if vowel else 'a'} {words}"


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
