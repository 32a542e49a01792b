"""Rules on what goes into a model and comes out of it: a pure library, no I/O.

`Scanner` is its core: text goes in piece by piece, what may leave comes out. `requests`, `replies`
and `streams` know where texts are in the bodies of the OpenAI API.
"""
