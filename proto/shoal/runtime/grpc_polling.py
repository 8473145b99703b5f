"""How gRPC waits for its sockets: chosen here, before gRPC is loaded, because it asks only once.

Since 1.7x gRPC moves bytes on threads of its own and hands every message from thread to thread,
which wakes sleeping threads several times per message. Its older way, one thread that polls all
connections and moves their bytes itself, costs a control message less CPU: compare
`python -m benchmarks.scale service --phase join --engine stub` with the same behind
`GRPC_EXPERIMENTS=event_engine_listener,event_engine_client`. Whoever sets GRPC_EXPERIMENTS has the
last word. Everything that serves or opens control streams takes gRPC from here.
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")

import grpc
import grpc.aio

__all__ = ["grpc"]
