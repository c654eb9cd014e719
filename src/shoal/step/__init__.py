"""Step sizes from curvature: advice, trial runs, a scheduler of batch sizes, and a step rule."""
