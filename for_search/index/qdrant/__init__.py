"""The engine that keeps embeddings on a Qdrant server or cluster, one point an image. The client is an optional package
(requirements-cluster.txt), imported when an index of this kind is built or opened.
"""
