"""Files, pipes and sockets, moved through pooled memory."""

from mempool.io.chunks import ChunkIterator, iter_chunks
from mempool.io.reading import read

__all__ = ["ChunkIterator", "iter_chunks", "read"]
