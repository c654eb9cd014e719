"""Encoders and heads over blocks."""
