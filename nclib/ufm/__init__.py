"""Unconstrained-features problems: objectives, solvers, landscape.  Never imports torchvision."""
