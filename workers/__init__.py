"""The stream processor: its agents, what they stand on, and the command line."""

import os

# Read when gRPC is loaded, by whichever module. Its fork handlers start threads in a child that is about to become
# another program, which abort it when its files are closed: 16 of 1,500 children of a process with calls under way.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
