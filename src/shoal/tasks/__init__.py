"""The main jobs, written with the parts: labels and nodes."""
