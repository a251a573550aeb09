"""A circuit breaker: a dependency that failed batch after batch is not asked for a while, so that nobody waits for it.

closed      every call goes through
open        none does: until a pause is over, and as long as the dependency's own probe gets no answer
half open   one call goes through: it closes the breaker, or opens it again for a longer pause

Batches in sequence count, not calls: what one stall does to many calls at once is one failure.
"""

import random
from collections.abc import Callable
from time import monotonic

STRIKES = 3  # batches in sequence, each begun after the last one had failed
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 2.0
SILENT_S = 10.0  # for how long a failed probe counts: longer than until the next one
TRY_S = 10.0  # for how long one call is waited for, should it never tell how it went


class Breaker:
    """That of one dependency. Nothing here waits; `changed` is told when it opens (True) and when it is closed."""

    def __init__(
        self,
        now_s: Callable[[], float] = monotonic,
        changed: Callable[[bool], None] = lambda _: None,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0),  # noqa: S311  # jitter, not a secret
    ) -> None:
        self.open_since_s: float | None = None
        self._now_s = now_s
        self._changed = changed
        self._jitter = jitter
        self._strikes = 0
        self._struck_s = float("-inf")
        self._pause_s = FIRST_PAUSE_S
        self._closed_until_s = 0.0  # while open: no call before
        self._trying = False
        self._silent_until_s = float("-inf")

    def lets_through(self) -> bool:
        """Whether a call may be made now. While it is open, one True is one call: tell how it went."""
        if self.open_since_s is None:
            return True
        now_s = self._now_s()
        if now_s < self._closed_until_s or self.is_silent:
            return False
        self._closed_until_s = now_s + TRY_S
        self._trying = True
        return True

    def worked(self) -> None:
        """A call was answered."""
        self._strikes = 0
        if self.open_since_s is not None:
            self.open_since_s, self._trying = None, False
            self._pause_s = FIRST_PAUSE_S
            self._changed(False)

    def failed(self, began_s: float) -> None:
        """A call failed. `began_s`: when its batch began; while it is open, when the call itself did."""
        now_s = self._now_s()
        if began_s < self._struck_s:
            return  # beside the failure that was counted
        self._struck_s = now_s
        self._strikes += 1
        if self.open_since_s is None:
            if self._strikes < STRIKES:
                return
            self.open_since_s = now_s
            self._changed(True)
        else:
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        self._trying, self._closed_until_s = False, now_s + self._pause_s * self._jitter()

    def unasked(self) -> None:
        """A call that was let through asked nothing: the next one may."""
        if self._trying:
            self._trying, self._closed_until_s = False, self._now_s()

    def probed(self, answered: bool) -> None:
        """How the dependency's own probe went; any answer is one, also a refusal: it costs nobody a timeout.

        An answer does not close it, for a server may answer and not work; after a silence it lets one call through.
        """
        now_s = self._now_s()
        if answered and self.is_silent and self.open_since_s is not None and not self._trying:
            self._pause_s, self._closed_until_s = FIRST_PAUSE_S, now_s
        self._silent_until_s = float("-inf") if answered else now_s + SILENT_S

    @property
    def is_silent(self) -> bool:
        """Whether its probe gets no answer."""
        return self._now_s() < self._silent_until_s
