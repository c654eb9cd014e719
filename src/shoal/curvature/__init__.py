"""How far: the curvature of an objective on the loader's own batches, and what it allows."""
