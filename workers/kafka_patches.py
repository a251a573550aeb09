"""What aiokafka must bear that it does not by itself: applied before the first client of a process is made."""

from workers import header_names, leaderless, resets


def apply() -> None:
    """May be called twice."""
    resets.expect_in_kafka_client()
    header_names.expect_any_in_kafka_client()
    leaderless.ask_with_pauses()
