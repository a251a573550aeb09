"""What stands for something large among the keys of a cache, so that its size is that of its entries."""

from hashlib import blake2b

import msgspec

DIGEST_BYTES = 16

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def digest(*parts: object) -> bytes:
    """128 bits of plain values, of tuples and of dataclasses of them; the same for equal parts of equal types."""
    return blake2b(_encode(parts), digest_size=DIGEST_BYTES).digest()
