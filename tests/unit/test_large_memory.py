import io

import pytest
import torch

from distributed.large_memory import LARGE_PAGE, SMALLEST, large_zeros


@pytest.mark.parametrize("elements", [0, 1, 1000, SMALLEST // 4 - 1, SMALLEST // 4, SMALLEST // 4 + 1, 3_000_017])
def test_buffers_are_zeros_of_the_length_that_was_asked_for(elements: int) -> None:
    buffer = large_zeros(elements)
    assert (buffer.dtype, buffer.shape) == (torch.float32, (elements,))
    assert torch.equal(buffer, torch.zeros(elements))
    assert torch.equal(buffer.fill_(2.0), torch.full((elements,), 2.0))


def test_a_large_buffer_begins_with_a_large_page_and_is_its_whole_storage() -> None:
    buffer = large_zeros(3_000_017)
    assert buffer.data_ptr() % LARGE_PAGE == 0
    assert buffer.untyped_storage().nbytes() == 4 * 3_000_017
    saved = io.BytesIO()
    torch.save(buffer, saved)
    assert saved.getbuffer().nbytes < 4 * 3_000_017 + 4096


def test_buffers_do_not_share_memory_and_outlive_each_other() -> None:
    one, other = large_zeros(2_000_000).fill_(1.0), large_zeros(2_000_000).fill_(2.0)
    part = one[1_999_990:]
    del one
    assert torch.equal(other, torch.full((2_000_000,), 2.0))
    assert torch.equal(part, torch.ones(10))
