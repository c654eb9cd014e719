"""What benchmarks/graphs.py measures on, and with."""
