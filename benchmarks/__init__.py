"""What is timed or weighed. Run one as a module: ``python -m benchmarks.latency --quick``."""
