"""Memory that several processes see: sent through queues, pipes and pools as a name, never as bytes. Linux."""

from mempool.shared.buffer import SegmentLost, SharedBuffer
from mempool.shared.pool import SharedPool
from mempool.shared.stats import SharedStats

__all__ = ["SegmentLost", "SharedBuffer", "SharedPool", "SharedStats"]
