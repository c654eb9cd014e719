"""Data sets: what is shipped, what is read, what is planted."""
