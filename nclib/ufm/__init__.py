"""Unconstrained-features problems: objectives, solvers, landscape.  Never imports torchvision."""

from nclib.ufm.sphere import sphere_hessian_eigenvalues as sphere_hessian_eigenvalues
from nclib.ufm.sphere import sphere_loss as sphere_loss
