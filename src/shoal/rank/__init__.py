"""Ranking labels: rankers, their ensemble, classifiers and search."""
