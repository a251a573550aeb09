"""What aiokafka must bear that it does not by itself: applied before the first client of a process is made."""

from workers import brokers_gone, committed, header_names, leaderless, resets, sequences


def apply() -> None:
    """May be called twice."""
    resets.expect_in_kafka_client()
    header_names.expect_any_in_kafka_client()
    leaderless.ask_with_pauses()
    committed.refuse_answers_of_nothing()
    sequences.wrap()
    brokers_gone.bootstrap_again()
