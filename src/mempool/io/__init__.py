"""Files, pipes and sockets, moved through pooled memory.

Read the parts in this order: `_os.py` (the calls), `_sources.py` and `_sinks.py` (what can be read and written), `_direct.py`
(past the page cache), `reading.py`, `writing.py`, `copying.py`; then `_ahead.py` (the thread that reads ahead) and `chunks.py`.
`BytesStream`, a file in memory, is compiled: `_stream.pxi` of the core.
"""

from mempool._core import BytesStream
from mempool.io.chunks import ChunkIterator, iter_chunks
from mempool.io.copying import copy
from mempool.io.reading import read
from mempool.io.writing import write

__all__ = ["BytesStream", "ChunkIterator", "copy", "iter_chunks", "read", "write"]
