"""Models: fit, evaluate, predict, encode, save and open, one class per task."""
