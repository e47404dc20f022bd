# Bytes between one producer and one consumer, always in one piece.
