"""The index of item vectors: in Milvus or Milvus Lite, in Faiss, and in memory."""
