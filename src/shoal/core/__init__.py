"""The nouns: sparse rows, blocks, objectives, losses, metrics, and how errors speak."""
