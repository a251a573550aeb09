"""The fault harness: `python -m tests.chaos`. docs/failures.md tells what each fault does to a caller."""

import workers  # noqa: F401  # before gRPC: the harness starts processes while it asks Milvus
