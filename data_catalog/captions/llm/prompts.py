"""The words of the questions to a language model. They enter the digests of kept answers."""

from collections.abc import Iterable, Mapping, Sequence

from data_catalog.captions.predicted_attributes import JOINT, SOURCES, UNKNOWN, Predictions
from data_catalog.captions.sentences import ABSENT, TEMPLATES

PROMPTS_VERSION = 1
"""Raised when the words of a question change, so that captions are written anew."""

_SHOWN = {
    "RGB": "a visible-light image",
    "NIR": "a near-infrared image; it shows no colours",
    "TIR": "a thermal-infrared image; it shows warmth and no colours",
    JOINT: "three images of the same moment side by side: visible light, near infrared, thermal infrared; "
    "only the first shows colours",
}
_READER = (
    "You describe images of surveillance cameras for a search system. Each shows one {kind}, the one in the "
    "middle. Images may be small, dark or blurred. You report what can be seen and do not guess beyond it."
)
_DISCREET = (
    " Never read, use or repeat licence plates, names, numbers, slogans or any other text in the image."
)
_CHOOSER = (
    "You merge what several readers saw in images of one {kind} into one description. The readers looked at "
    "the visible-light image (RGB), the near-infrared image (NIR), the thermal-infrared image (TIR), and at "
    "the three side by side (JOINT). Each gave a value and a confidence from 0 to 1 for each attribute."
)


def prediction_instructions(kind: str, redact: bool) -> str:
    """The system's message of step one, for a kind of object; with `redact` it forbids reading text."""
    return _READER.format(kind=kind) + (_DISCREET if redact else "")


def choice_instructions(kind: str) -> str:
    """The system's message of step two, for a kind of object."""
    return _CHOOSER.format(kind=kind)


def prediction_text(source: str, attributes: Mapping[str, Sequence[str]]) -> str:
    """The user's message of step one.

    Args:
        source: What the image shows.
        attributes: Attribute to its values.
    """
    listed = "\n".join(f"- {name}: {', '.join(values)}" for name, values in attributes.items())
    return (
        f"This is {_SHOWN[source]}.\n"
        "For every attribute give the value that fits best, and as confidence from 0 (a guess) to 1 "
        f'(plain to see) how sure you are. "{ABSENT}" means that you see that there is none. Where the '
        f'image does not show it, the value is "{UNKNOWN}".\nAttributes and their values:\n{listed}'
    )


def choice_text(kind: str, names: Iterable[str], predictions: Predictions) -> str:
    """The user's message of step two.

    Args:
        kind: Kind of object, which has a template.
        names: Attributes to choose values of.
        predictions: What each source shows.
    """
    triplets = [
        f"- {name}: "
        + "; ".join(
            f"{source} {found.value} {float(found.confidence):.2f}"
            for source in SOURCES
            if (found := predictions.get(source, {}).get(name)) is not None
        )
        for name in names
    ]
    template = TEMPLATES[kind]
    phrases = [template.subject, *(" ".join((word, *listed)) for word, listed in template.clauses)]
    return (
        "What they saw (attribute: reader value confidence; ...):\n"
        + "\n".join(triplets)
        + f'\n\nThe description is filled into this template: "A photo of {", ".join(phrases)}"\n'
        "For every attribute choose the most reliable value: weigh the confidences, how many readers "
        "agree, and which image shows the attribute best (colours only the visible-light one), and "
        "let the values fit together. Choose only values that a reader gave. Where no reader gave "
        f'one, and only there, answer "{UNKNOWN}".'
    )
