"""Text that somebody else wrote, made fit for a database, a log and a terminal."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def clean_text(text: str, limit: int = 500) -> str:
    """At most `limit` characters, all of them printable: no control or escape sequence, no lone surrogate, no direction mark.
    (JSON and `sys.argv` let lone surrogates in; a protobuf string raises `UnicodeEncodeError` on one.)

    White space becomes a space, whatever else does not print the replacement character.
    """
    return "".join(_clean(character) for character in text[:limit])


def is_clean(text: str, limit: int = 500) -> bool:
    """Whether `clean_text` would leave it alone."""
    return len(text) <= limit and text.isprintable()


def _clean(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else REPLACEMENT
