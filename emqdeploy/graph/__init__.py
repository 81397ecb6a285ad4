"""The exact arithmetic of a network's graph: the integer reference, float operators, parity, filling a graph."""
