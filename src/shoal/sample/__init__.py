"""WHO is in the batch: batch samplers choose seeds, block samplers say what they touch."""
