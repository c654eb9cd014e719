"""HOW the rows arrive: tables in host memory, gathers, updates and the loader."""
