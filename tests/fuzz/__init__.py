"""User programs, drawn at random from a grammar of what people write, and checked: converted right, or refused.

``python -m tests.fuzz --help`` runs many of them. Each file holds one kind of choice that a user makes; ``render.py``
puts the choices together into the source of a whole model.
"""
