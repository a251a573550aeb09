"""The index of item vectors: in Milvus or Milvus Lite, and in memory."""
