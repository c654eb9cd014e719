"""Networks and data of benchmarks/steps.py."""
