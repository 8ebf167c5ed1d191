"""Closed forms, one module per notebook.  Nothing here trains or plots."""
