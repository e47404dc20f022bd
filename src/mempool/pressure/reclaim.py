"""Making room: what a monitor asks to shrink, step by step, with a floor."""
