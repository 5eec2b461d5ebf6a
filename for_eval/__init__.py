"""Embeddings to rankings, scores and leaderboards."""
