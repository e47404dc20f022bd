"""`LeakDetector`: heap and external growth against a baseline."""
