"""What every gRPC channel of ours is made with, to Milvus and to model servers."""

OPTIONS = [
    ("grpc.enable_http_proxy", 0),  # no proxy of the environment's: backends are near
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),  # the default backs off to two minutes
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),  # notices a peer that vanished without a word
    ("grpc.keepalive_timeout_ms", 5000),
]
