"""The local stack of one test run: `python tests/stack.py FOLDER` starts it when FOLDER/wanted appears.

It is a process of its own so that the stack starts only when a test asks for it, is shared by all xdist workers, and
ends with the run however that ends: the run holds the other end of standard input.
"""

import os
import select
import sys
from pathlib import Path

from workers.errors import RecallError
from workers.local.stack import LocalStack

POLL_S = 0.05
SESSION_S = 60  # a machine that does much else may keep a server waiting, and that ends nothing


def main(folder: Path) -> int:
    """Wait until the stack is wanted, start it, and keep it until standard input ends."""
    while not (folder / "wanted").exists():
        if _input_ended(POLL_S):
            return 0
    stack = LocalStack(folder / "data", lambda line: print(line, file=sys.stderr, flush=True), session_s=SESSION_S)
    try:
        stack.start()
    except RecallError as error:
        _publish(folder / "failed", str(error))
        return 1
    try:
        _publish(folder / "ready", "\n".join([stack.kafka.address, stack.redis.address, stack.milvus.address]))
        while not _input_ended(1.0):
            pass
    finally:
        stack.stop()
    return 0


def _input_ended(within_s: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], within_s)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def _publish(path: Path, text: str) -> None:
    temporary = path.with_suffix(".writing")
    temporary.write_text(text)
    temporary.rename(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
