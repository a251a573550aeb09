"""Runs of hypothesis that are longer than it is made for: in rounds, as it keeps in memory what it tried in one."""

import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

T = TypeVar("T")

HOSTILE_CHARACTERS = "\"'\\\n\r\t\0\b\f\v\x1b\x7f\x85\u2028\ufeff[](){}=!<>&|,.$%_*#/:; aonruUx019éß名🎬"
NASTY = (
    '" or 1==1', '") or ("" == "', '\\" or 1==1 or "', "\\", "\\\\", '"', '\\"', "'; drop collection",
    "\\u0022", "\\x22", "\\042", "\\U00000022", "\n", "\r\n", "\\\n", "%", "_%", "{a}", '["a"]',
    "true", "1", "_f", "year:n", 'attributes["year"]', "null", "é", "e\u0301", "\U0010ffff", "x" * 256, "名" * 341,
)  # fmt: skip

ROUND = 500
LONG = settings(
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def run(seed: int, inputs: int, examples: st.SearchStrategy[T], check: Callable[[T], int]) -> dict[str, object]:
    """Example after example, until `check` has counted so many inputs. Raises what it raises, with the smallest one."""
    chance, done, drawn, started_s = random.Random(seed), 0, 0, time.process_time()

    def each(example: T) -> None:
        nonlocal done, drawn
        done, drawn = done + check(example), drawn + 1

    bounded = settings(LONG, max_examples=min(ROUND, inputs // 50 + 1))
    while done < inputs:
        hypothesis.seed(chance.getrandbits(64))(bounded(given(examples)(each)))()
    return {"seed": seed, "inputs": done, "examples": drawn, "processor_s": round(time.process_time() - started_s, 1)}


def one_of(values: Sequence[T]) -> st.SearchStrategy[T]:
    """Like sampled_from, which would spell out all of them whenever hypothesis names a strategy."""
    return st.integers(0, len(values) - 1).map(lambda at: values[at])


def nasty_text(max_size: int = 12) -> st.SearchStrategy[str]:
    """Text that ends literals, starts escapes, or is made of what is rarely met; no half of a surrogate pair."""
    return st.text(max_size=max_size) | st.text(HOSTILE_CHARACTERS, max_size=max_size) | one_of(NASTY)
