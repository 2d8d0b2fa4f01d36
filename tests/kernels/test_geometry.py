import pytest
import torch

from masked_swin.kernels import Windows, relative_position_bias, relative_position_index, shift_mask
from masked_swin.kernels.geometry import token_order

GEOMETRIES = [
    Windows(16, 24, (8, 8), (4, 4)),
    Windows(6, 10, (3, 5), (1, 2)),
    Windows(8, 8, (8, 8), (4, 4)),
    Windows(8, 12, (4, 4), (0, 2)),
    Windows(8, 12, (4, 4), (2, 0)),
    Windows(9, 7, (3, 7), (0, 0)),
]


def partition(image, windows):
    """The public code's way: roll, then cut."""
    height, width = windows.window
    rolled = image.roll((-windows.shift[0], -windows.shift[1]), (0, 1))
    cut = rolled.view(windows.height // height, height, windows.width // width, width)
    return cut.permute(0, 2, 1, 3).reshape(windows.count, windows.size)


@pytest.mark.parametrize("windows", GEOMETRIES)
def test_token_order_is_roll_and_partition(windows):
    image = torch.arange(windows.tokens).view(windows.height, windows.width)
    assert torch.equal(token_order(windows), partition(image, windows))


@pytest.mark.parametrize("windows", GEOMETRIES)
def test_shift_mask_is_swins(windows):
    def bands(extent, window, shift):
        return [slice(0, -window), slice(-window, -shift), slice(-shift, None)] if shift else [slice(0, None)]

    regions = torch.zeros(windows.height, windows.width)
    count = 0
    for rows in bands(windows.height, windows.window[0], windows.shift[0]):
        for columns in bands(windows.width, windows.window[1], windows.shift[1]):
            regions[rows, columns] = count
            count += 1
    unshifted = windows._replace(shift=(0, 0))  # the public code numbers the regions of the shifted image
    cut = partition(regions, unshifted)
    assert torch.equal(shift_mask(windows), (cut[:, :, None] != cut[:, None, :]).float() * -100)


def test_position_index_tells_rows_from_columns():
    index = relative_position_index((2, 3))
    assert index.shape == (6, 6)
    assert index.min() == 0
    assert index.max() == 14
    # query (1, 2) against key (0, 0): 1 row and 2 columns apart
    assert index[5, 0] == (1 + 1) * 5 + (2 + 2)


def test_bias_table_is_refused_if_it_does_not_fit():
    with pytest.raises(ValueError, match=r"needs shape \(225, heads\)"):
        relative_position_bias(torch.zeros(224, 6), (8, 8))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4, 8, (8, 8)), "larger than the image"),
        ((8, 8, 8), r"window must be a pair \(height, width\), got 8"),
        ((8, 8, (4, 4), 2), "shift must be a pair"),
        ((12, 8, (8, 8)), "not a multiple"),
        ((8, 8, (8, 8), (8, 0)), "smaller than the window"),
        ((8, 8, (0, 8)), "at least 1"),
    ],
)
def test_windows_that_do_not_tile_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Windows(*sizes)
