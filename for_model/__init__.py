"""Images and text to embeddings, and how the heads that make them are trained.

Storing and searching embeddings is the affair of `for_search`, scoring that of `for_eval`.
"""
