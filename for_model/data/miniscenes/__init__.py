"""MiniScenes, the built-in world: its concepts, its drawings, and the scenes made of them.

They are written in COCO's layout and read by the reader of that.
"""
