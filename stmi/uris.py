"""URIs as messages show them."""


def presentable_uri(text: str) -> str:
    """A URI, well-formed or not, without what may be secret: everything before an @, and the query."""
    scheme, separator, rest = text.partition("://") if "://" in text else ("", "", text)
    _, at, location = rest.rpartition("@")
    return f"{scheme}{separator}{'...@' if at else ''}{location.partition('?')[0]}"
