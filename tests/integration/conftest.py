"""What integration tests share."""

from tests.integration.recall_system import bundle, system

__all__ = ["bundle", "system"]
