"""shoal's batches and losses inside other people's trainers; each needs its package installed."""
