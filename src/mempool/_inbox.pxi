# Bytes that arrived from a peer and were not asked for yet.
