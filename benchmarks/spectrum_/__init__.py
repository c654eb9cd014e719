"""The two sides of benchmarks/spectrum.py, each of which runs in a Python of its own."""
