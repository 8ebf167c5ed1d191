"""Work on a GPU replayed as a CUDA graph: one launch in place of hundreds."""

import functools
import warnings

import torch

WARM = 3  # calls before the recording, so that libraries have chosen and allocated


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
        return self.work(*tensors)

    def _replay(self):
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.result

    def _record(self, tensors):
        """Whether it went well.  A recording runs nothing: the replay that follows does."""
        graph, self.given = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in tensors]
        try:
            with torch.cuda.device(self.device), torch.cuda.graph(graph):
                self.result = self.work(*self.given)
        except RuntimeError as error:  # what CUDA refuses, and the operations that wait for it
            self.possible = False
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"not replayed as a CUDA graph: {reason}", stacklevel=4)
            return False
        self.graph, self.gradients = graph, [p.grad for p in self.parameters]
        return True


def possible(device):
    """Whether work on ``device`` can be recorded."""
    return device.type == "cuda" and torch.cuda.is_available()


@functools.cache
def say(line):
    """Print a line the first time it is said."""
    print(line)
