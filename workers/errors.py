"""Errors of the workers, split by what to do about it. Others stay within the module that raises and catches them.

    RecallError
      InvalidInput             this event can never succeed: dead letter (or a `rejected` answer)
      DependencyError          a backend failed: activity and items retry, requests are answered `degraded`
        DependencyUnavailable    it cannot be reached, or refuses work for now
        DependencyTimeout        it did not answer before the deadline
        RowRefused               it refuses these rows and would refuse them again: isolate and dead-letter them
      StoreLost                a store has lost what it had: end without a commit, and fill it again from Kafka
      ConfigurationError       refuse to start, exit code 2, one line
        ExtraMissing             packages that only this needs are not installed

Vendor exceptions are translated at the edge, in the adapters; nothing inside sees them. `schemas.codec.DecodeError` is
the codec's own and is the same kind of thing as InvalidInput: it carries the same stable `code`.
"""


class RecallError(Exception):
    """Base of all. The message is one line that a person can act on."""


class InvalidInput(RecallError):
    """An event that can never be processed. `code` is the stable `dlq.error.code`."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class DependencyError(RecallError):
    """A backend failed. `dependency` is its name: kafka, redis, tower, or what the setting `index` says: milvus, ..."""

    def __init__(self, dependency: str, message: str) -> None:
        super().__init__(f"{dependency}: {message}")
        self.dependency = dependency


class DependencyUnavailable(DependencyError):
    """It cannot be reached, or refuses work for now; trying again later may help."""


class DependencyTimeout(DependencyError):
    """It did not answer before the deadline."""


class RowRefused(DependencyError):
    """It refuses these rows and would again. `rows` are positions in the batch; None when it did not say."""

    def __init__(self, dependency: str, message: str, rows: list[int] | None = None) -> None:
        super().__init__(dependency, message)
        self.rows = rows


class StoreLost(RecallError):
    """A store has lost what it had: what was committed is no longer in it. A new start reads it again from Kafka."""


class ConfigurationError(RecallError):
    """What was configured cannot work: refuse to start, exit code 2."""


class ExtraMissing(ConfigurationError):
    """`what` needs packages of one of pyproject.toml's extras, which are installed from the checkout."""

    def __init__(self, what: str, extra: str, found: str = "") -> None:
        line = f"{what} needs the extra `{extra}`: pip install '.[{extra}]' in the checkout"
        super().__init__(f"{line} ({found})" if found else line)
