"""From readings to levels: a pure state machine. Time and readings come in, a decision comes out."""
