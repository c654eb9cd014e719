"""What benchmarks/rebuild.py runs in processes of their own."""
