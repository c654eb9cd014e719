"""Step sizes from curvature: advice, its evidence, a scheduler of batch sizes, and a learner."""
