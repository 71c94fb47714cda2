"""How much memory tensors hold while something runs."""

import weakref

import torch


class Bytes(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes that tensors made inside held at one moment, by the lifetime of their storages."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.seen = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.seen:
                    self.seen[storage.data_ptr()] = size = storage.nbytes()
                    self.live += size
                    weakref.finalize(storage, self.free, storage.data_ptr())
                    self.peak = max(self.peak, self.live)
        return out

    def free(self, pointer):
        self.live -= self.seen.pop(pointer, 0)
