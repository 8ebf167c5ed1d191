"""Speed and memory of nclib as ratios anyone can rerun: ``python -m tests.benchmarks``.

A *row* does one task twice: as nclib does it, and as a user would write it in a few plain lines
(the baseline, in full in the module of the row).  Both give numbers that must agree.
"""
