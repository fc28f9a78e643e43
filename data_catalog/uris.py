"""URIs of servers and databases as they may be stored and shown."""


def without_credentials(uri: str) -> str:
    """A URI that may be stored and shown: without user name, password and query, well-formed or not."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.startswith(("sqlite", "file")):
        return uri
    # All that comes before an @ may be a password, which may contain / and #.
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]
