"""Which partition a key belongs to."""

from aiokafka.partitioner import murmur2


def partition_of(key: bytes, partitions: int) -> int:
    """As the Java client's default partitioner, and those that follow it, have it: murmur2, its sign left out."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
