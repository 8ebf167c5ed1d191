"""What the figures of all notebooks share: ``style``, the common look, and ``panels``.

Nothing here loads data or trains; the figures of a result are in its own folder.
"""
