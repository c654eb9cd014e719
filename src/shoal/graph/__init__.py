"""Layers of graph networks on sampled blocks and on whole graphs."""
