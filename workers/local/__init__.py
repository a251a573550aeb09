"""The local stack: the real Kafka, Redis and Milvus as child processes, without Docker or root."""
