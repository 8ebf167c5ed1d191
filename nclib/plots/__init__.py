"""Figures: one function per figure, from tidy DataFrames to a matplotlib ``Figure``.

``style`` holds the common look; there is one module per notebook.  Nothing here loads or trains.
"""
