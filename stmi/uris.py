"""URIs as they are stored and shown: without what may be secret."""


def without_credentials(uri: str) -> str:
    """A URI of a server or database, well-formed or not, to be stored: without user, password and query."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.startswith(("sqlite", "file")):
        return uri
    # All that comes before an @ may be a password, which may contain / and #.
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]


def presentable_uri(text: str) -> str:
    """A URI, well-formed or not, for a message: `...` in place of what comes before an @, and no query."""
    scheme, separator, rest = text.partition("://") if "://" in text else ("", "", text)
    _, at, location = rest.rpartition("@")
    return f"{scheme}{separator}{'...@' if at else ''}{location.partition('?')[0]}"
