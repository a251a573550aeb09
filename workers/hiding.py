"""Secrets in texts: every form in which a message may repeat one, and the text without them."""

import json
from collections.abc import Iterable, Sequence

HIDDEN = "***"
SHORTEST = 6  # anything shorter would blacken ordinary words


def forms(secrets: Iterable[str]) -> list[str]:
    """How these secrets may be written, longest first: as they are, inside Python's and JSON's quotes, and both."""
    found = set()
    for secret in secrets:
        if len(secret) >= SHORTEST:
            escaped = repr(f"\"'{secret}")[4:-1]  # both quotes within: then Python escapes the single ones
            found |= {secret, escaped, escaped.replace("\\'", "'"), escaped.replace('"', '\\"')}
    return sorted(found | {json.dumps(form)[1:-1] for form in found}, key=len, reverse=True)


def hide(text: str, written: Sequence[str]) -> str:
    """A text without these forms of secrets."""
    for form in written:
        text = text.replace(form, HIDDEN)
    return text
