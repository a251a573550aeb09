"""The index of item vectors: in Milvus, and in memory."""
