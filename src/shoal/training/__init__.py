"""The loop: jobs, batches on their way to it, gradients, runs and checkpoints."""
