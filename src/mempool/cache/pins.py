"""Pinned bytes: memory of values that left a cache while somebody still views it."""

from mempool.cache._policies import Pins

__all__ = ["Pins"]
