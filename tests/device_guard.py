"""A machine with an accelerator, imitated: what CUDA refuses is refused here, without a GPU.

Within ``with Accelerator():`` every tensor stays in ordinary memory with its real values, so that
control flow runs as ever; one that was made or moved with ``device="cuda"`` only says that it is
on the accelerator.  One mode watches PyTorch's Python functions (who asks for a device, who asks
for the memory), one its operations, those of the backward pass included.  They fail as on CUDA
when an operation mixes devices, when a generator of the CPU draws on the accelerator, and when
NumPy or pandas look at a tensor there.  As on CUDA, a CPU scalar may enter pointwise operations,
and CPU indices may pick from the accelerator, but not the other way round.
"""

import contextlib
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
_aten, _functorch = torch.ops.aten, torch._C._functorch
_INDEXED = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
_COPIES = (_aten.copy_, _aten._to_copy)
_FILLS = (_aten.fill, _aten.fill_, _aten.masked_fill, _aten.masked_fill_)


class _Machine:
    """Which storages are on the accelerator, and whether what an operation makes belongs there."""

    def __init__(self):
        self.storages = set()  # of weak references: no address is used again meanwhile
        self.inherit = False

    def holds(self, tensor):
        return self.key(tensor) in self.storages

    def put(self, tensor, there):
        (self.storages.add if there else self.storages.discard)(self.key(tensor))

    @staticmethod
    def key(tensor):
        while _functorch.is_functorch_wrapped_tensor(tensor):  # within vmap
            tensor = _functorch.get_unwrapped(tensor)
        return StorageWeakRef(tensor.untyped_storage())


def _tensors(*values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _on_host(value):
    """The CPU in place of an accelerator, anything else as it is."""
    named = isinstance(value, torch.device | str) and str(value).startswith("cuda")
    return HOST if named else value


class _Functions(TorchFunctionMode):
    """What Python asks for: devices, copies from one to another, memory."""

    def __init__(self, machine):
        super().__init__()
        self.machine = machine

    def __torch_function__(self, func, types, args=(), kwargs=None):
        machine, kwargs = self.machine, kwargs or {}
        if func == Tensor.device.__get__ and machine.holds(args[0]):
            return GPU
        if func in (Tensor.is_cuda.__get__, Tensor.is_cpu.__get__):
            return machine.holds(args[0]) == (func == Tensor.is_cuda.__get__)
        reads = func in (Tensor.numpy, Tensor.__array__) and not kwargs.get("force")
        if reads and machine.holds(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        given, device = _tensors(args, kwargs), self._asked_for(func, args, kwargs)
        there = any(map(machine.holds, given)) if device is None else device.type == "cuda"
        if device is not None:
            func = Tensor.cpu if func is Tensor.cuda else func
            args = [_on_host(value) for value in args]
            kwargs = {name: _on_host(value) for name, value in kwargs.items()}
        before, machine.inherit = machine.inherit, there
        try:
            found = func(*args, **kwargs)
            if device is not None and isinstance(found, Tensor) and machine.holds(found) != there:
                if machine.key(found) in map(machine.key, given):
                    found = found.clone()
                machine.put(found, there)
            return found
        finally:
            machine.inherit = before

    def _asked_for(self, func, args, kwargs):
        """The device that a call names, or ``None``."""
        if func in (Tensor.cpu, Tensor.cuda):
            return HOST if func is Tensor.cpu else GPU
        if kwargs.get("device") is not None:
            return torch.device(kwargs["device"])
        for value in args[1:] if func is Tensor.to else ():
            if isinstance(value, Tensor):
                return GPU if self.machine.holds(value) else value.device
            if isinstance(value, torch.device | str):
                return torch.device(value)
        return None


class _Operations(TorchDispatchMode):
    """Every operation: refuses to mix devices, and marks what it makes."""

    def __init__(self, machine):
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        machine, kwargs = self.machine, kwargs or {}
        given = _tensors(args, kwargs)
        there = self._runs_there(func, args, given) if given else machine.inherit
        draws = any(isinstance(value, torch.Generator) for value in tree_leaves((args, kwargs)))
        if there and draws:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        found, old = func(*args, **kwargs), set(map(machine.key, given))
        for tensor in _tensors(found) if there else ():
            if machine.key(tensor) not in old:
                machine.put(tensor, True)
        return found

    def _runs_there(self, func, args, given):
        """Whether an operation runs on the accelerator; raises where CUDA would."""
        holds, packet, free = self.machine.holds, func.overloadpacket, lambda tensor: False
        if packet in _COPIES:
            return holds(args[0])
        if packet in _INDEXED:
            if not holds(args[0]) and any(map(holds, _tensors(args[1]))):
                raise RuntimeError("indices should be on the CPU or on the same device")
            given, free = [args[0], *_tensors(args[2:])], lambda tensor: tensor.ndim == 0
        elif torch.Tag.pointwise in func.tags or packet in _FILLS or "_foreach" in func.name():
            free = lambda tensor: tensor.ndim == 0 and not holds(tensor)
        places = {holds(tensor) for tensor in given if not free(tensor)}
        if len(places) == 2:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({func})"
            )
        return any(map(holds, given))


class Accelerator(contextlib.ExitStack):
    """Within it ``device="cuda"`` works without a GPU, and fails where it would fail on one.

    May be entered again: what is on the accelerator stays there.
    """

    def __init__(self):
        super().__init__()
        self.machine = _Machine()

    def __enter__(self):
        state = {
            "get_rng_state": lambda *_: torch.get_rng_state(),
            "set_rng_state": lambda *_: None,
        }
        self.enter_context(mock.patch.multiple(torch.cuda, **state))
        self.enter_context(_Operations(self.machine))
        self.enter_context(_Functions(self.machine))
        return GPU
