"""Children that are started while calls of gRPC are under way become what they are meant to be."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHILDREN = 60
CODE = f"""
import threading
import workers
import grpc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from workers.index.milvus_protocol import milvus_pb2, milvus_pb2_grpc
from workers.local.process import spawn

server = grpc.server(ThreadPoolExecutor(2))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
stub = milvus_pb2_grpc.MilvusServiceStub(grpc.insecure_channel(f"127.0.0.1:{{port}}"))

def call() -> None:
    while True:
        try:
            stub.CheckHealth(milvus_pb2.CheckHealthRequest(), timeout=1)
        except grpc.RpcError:  # nobody implements it
            pass

threading.Thread(target=call, daemon=True).start()
codes = [spawn(["/bin/true"], Path("log"), Path()).wait() for _ in range({CHILDREN})]
print(sum(code == 0 for code in codes))
"""


def test_children_of_a_process_with_calls_under_way_are_left_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout, done.returncode) == (f"{CHILDREN}\n", 0), done.stderr
    assert "fork" not in done.stderr, "gRPC's handlers, which abort one in a hundred, have run"
    assert (tmp_path / "log").read_text() == ""
