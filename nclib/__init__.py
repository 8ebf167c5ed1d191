"""The neural-collapse companion: exact theory, experiments and checked claims.

Shapes, everywhere in this package (torch layout, **one row per sample**):

===========  ==========================================  =========
``features`` last-layer features H                       ``(N, d)``
``labels``   class index 0..K-1, int64                   ``(N,)``
``targets``  multi-hot label sets                        ``(N, K)``
``weight``   last-layer classifier W                     ``(K, d)``
``bias``     last-layer bias b                           ``(K,)``
``logits``   ``features @ weight.T + bias``              ``(N, K)``
===========  ==========================================  =========

The papers write features as columns; theory modules say so once.  Importing ``nclib`` is cheap:
submodules are imported by those who need them, and ``Tracker`` imports PyTorch when it is made.
"""

import warnings

from nclib.tracker import Tracker

__all__ = ["Tracker"]

# torch.func warns about its own use of torch.jit on first call; that text, with a path in it, would
# end up in stored notebooks.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")

__version__ = "0.1.0"
