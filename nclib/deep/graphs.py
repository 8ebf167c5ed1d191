"""Work on a GPU replayed as a CUDA graph: one launch in place of hundreds."""

import contextlib
import functools
import warnings

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WARM = 3  # calls before the recording, so that libraries have chosen and allocated
_aten = torch.ops.aten
# Operations whose result decides shapes or is read in Python: the CPU waits for them.
_WAITS = (_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.equal,
          _aten.bincount, _aten.repeat_interleave, _aten._unique2, _aten.unique_dim,
          _aten.unique_consecutive)  # fmt: skip


class Replayed:
    """``work(*tensors) -> tensor`` on a GPU, recorded at its fourth call and replayed from then on.

    ``work`` must be the same operations at every call, on the tensors it is given and on others
    that stay where they are: no decision in Python, no look at a number.  The gradients that it
    leaves in ``parameters`` stay there after a replay, too; the result is overwritten by the next
    call.  Calls with other shapes (a smaller last batch) run as they are.  So does every call
    where there is no GPU, or where the recording fails: one warning says why.
    """

    def __init__(self, work, device, parameters=()):
        self.work, self.device, self.parameters = work, device, list(parameters)
        self.possible = possible(device)
        self.shapes, self.left = [], 0  # of the calls that are recorded; calls before it
        self.graph, self.given, self.result, self.gradients = None, [], None, []

    def __call__(self, *tensors):
        if not self.possible:
            return self.work(*tensors)
        shapes = [tensor.shape for tensor in tensors]
        if self.graph is None and shapes > self.shapes:  # not the smaller batch at an epoch's end
            self.shapes, self.left = shapes, WARM
        if shapes != self.shapes:
            return self.work(*tensors)
        if self.graph is not None:
            for own, tensor in zip(self.given, tensors, strict=True):
                own.copy_(tensor)
            return self._replay()
        if self.left == 0 and self._record(tensors):
            return self._replay()
        self.left -= 1
        with Watch() if self.left == 0 else contextlib.nullcontext() as watch:
            found = self.work(*tensors)
        if watch and watch.reason:
            self._give_up(watch.reason)
        return found

    def _replay(self):
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.result

    def _record(self, tensors):
        """Whether it went well.  A recording runs nothing: the replay that follows does."""
        graph, self.given = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in tensors]
        random = torch.cuda.get_rng_state(self.device)
        try:
            with torch.cuda.device(self.device), torch.cuda.graph(graph):
                self.result = self.work(*self.given)
        except RuntimeError as error:  # what CUDA refuses and the watch did not see
            self._give_up(str(error).strip().partition("\n")[0])
            _new_generator(self.device, random)
            return False
        self.graph, self.gradients = graph, [p.grad for p in self.parameters]
        return True

    def _give_up(self, reason):
        self.possible = False
        warnings.warn(f"not replayed as a CUDA graph: {reason}", stacklevel=5)


class Watch(TorchDispatchMode):
    """Looks for what cannot be recorded while it runs as it is; ``reason``: the first such thing.

    A recording that fails would leave CUDA's generator and streams in disorder.
    """

    reason = ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        waits = func.overloadpacket in _WAITS
        if func.overloadpacket in (_aten.index, _aten.index_put, _aten.index_put_):
            waits = any(mask is not None and mask.dtype == torch.bool for mask in args[1])
        devices = {value.device.type for value in (*args, result) if torch.is_tensor(value)}
        if func.overloadpacket in (_aten._to_copy, _aten.copy_) and len(devices) > 1:
            waits = True
        if waits and not self.reason:
            self.reason = f"{func.overloadpacket} makes the CPU wait for the GPU"
        return result


def _new_generator(device, state):
    """Give CUDA a generator that no failed recording holds, in the given state."""
    index = torch.cuda.current_device() if device.index is None else device.index
    fresh = torch.Generator(device=torch.device("cuda", index))
    torch.cuda.default_generators[index].graphsafe_set_state(fresh.graphsafe_get_state())
    torch.cuda.set_rng_state(state, index)


def possible(device):
    """Whether work on ``device`` can be recorded."""
    return device.type == "cuda" and torch.cuda.is_available()


@functools.cache
def say(line):
    """Print a line the first time it is said."""
    print(line)
