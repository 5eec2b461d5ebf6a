"""Images and text to embeddings, and how the heads that make them are trained."""
