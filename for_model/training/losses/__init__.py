"""What a training minimises: the paper's set prediction loss, our ranking losses, and the objectives made of them.

A loss is arithmetic on tensors and knows no dataset; what an image is trained on is in `targets` beside this folder.
"""
