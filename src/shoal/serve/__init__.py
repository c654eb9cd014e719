"""A small HTTP service that predicts the labels of texts with a trained run."""
