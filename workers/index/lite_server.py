"""Milvus Lite as a server on loopback: `python -m workers.index.lite_server FOLDER PORT`, until SIGTERM or SIGINT.

Lite's own command is not used, for three reasons. It answers calls in parallel, which nothing in it makes safe: two
calls that open a collection get two copies of it, and a search beside a flush misses rows. It keeps up to 128 MB of new
rows in Python lists, which every search walks. And SIGTERM ends it in the middle of a call. Here calls are answered one
after another, new rows move to an indexed segment soon, and SIGTERM writes everything out first.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from workers.signals import Stopping

NEW_ROWS_BYTES = 2_000_000  # of a collection, walked by every search until they become a segment: about 4,000 rows
FINISH_S = 5.0  # for the calls that have been taken
FAILED = 1  # exit code
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]


def main(folder: str, port: int) -> int:
    """Serve a folder; returns the exit code. What stands in the way is one line on standard error."""
    stopping = Stopping()
    stopping.note()
    os.environ.setdefault("MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES", str(NEW_ROWS_BYTES))  # read at import
    import grpc
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from milvus_lite.db import MilvusLite
    from milvus_lite.exceptions import DataDirLockedError
    from pymilvus.grpc_gen import milvus_pb2_grpc

    try:
        database = MilvusLite(folder)
    except DataDirLockedError:
        return _refuse(f"{folder} is open in another process; Milvus Lite serves one at a time")
    except OSError as error:
        return _refuse(f"{folder} cannot be opened: {error.strerror}")
    try:
        server = grpc.server(ThreadPoolExecutor(max_workers=1), options=UNLIMITED)
        milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(database), server)
        try:
            server.add_insecure_port(f"127.0.0.1:{port}")
        except RuntimeError as error:
            return _refuse(f"Milvus Lite cannot listen at 127.0.0.1:{port}: {error}")
        server.start()
        while not stopping:
            time.sleep(0.1)
        server.stop(FINISH_S).wait()
    finally:
        database.close()
    return 0


def _refuse(line: str) -> int:
    sys.stderr.write(f"recall: {line}\n")
    return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
