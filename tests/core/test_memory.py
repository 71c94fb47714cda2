"""By which errors a lack of memory shows, and what is said when nothing smaller is left."""

import pytest
import torch
from pytorch_lightning.utilities.memory import is_oom_error

from groupcam_aug.memory import exhausted, is_out_of_memory


@pytest.mark.parametrize(
    "error, says_so",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory(error, says_so):
    assert is_out_of_memory(error) == says_so


def test_the_cpus_way_of_saying_it():
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


def test_the_last_word_names_size_chunk_and_reason():
    error = exhausted(MemoryError(), torch.empty(4, 3, 30, 40))
    assert type(error) is MemoryError
    assert "30 x 40" in str(error) and "chunk=1" in str(error) and str(error).endswith("(MemoryError)")
    again = exhausted(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), torch.empty(1, 3, 2, 2))
    assert is_oom_error(again), "Lightning's search for a batch size goes on"
    assert str(exhausted(RuntimeError("first\nsecond"), torch.empty(1, 3, 2, 2))).endswith("(first)")
