"""The systems that benchmarks/rivals.py measures, one module a kind."""
