"""The parts of embedding: what makes a shard of some images, what a run that isn't finished leaves, and which rows a
store then lists.

`for_search.store.embed` puts them together; nothing else needs them. What a finished store looks like is known to
`for_search.store.store`, not here.
"""
