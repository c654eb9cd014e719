"""Text encoders: texts to token ids to unit vectors."""
