"""The masked keys of a window as one key: its bias, and what the gradient of that adds to the position bias.

All masked tokens share q, k and v, so a softmax sees them as one key with bias log sum exp(bias) over their positions.
Windows of one *mask pattern* have the same regions and window mask. For them the sum is a product of a table of
exponentials with 0/1 rows that say which positions are masked. A *window group* is some windows of one mask pattern.
"""

import triton
import triton.language as tl

from .attention_pairs import FOREIGN, NO_KEY, add_window_tables, is_foreign, load_bias

# Exponentials are kept 2**60 times larger, so that those of other shift regions, 100 lower, stay within float32.
EXP_OFFSET = tl.constexpr(60.0)


@triton.jit
def bias_and_mask(bias_ptr, mask_ptr, query, position, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """(positions, queries), -inf outside of the window."""
    valid, key_valid = query < QUERIES, position < KEYS
    bias = load_bias(bias_ptr, query, valid, position, key_valid, QUERIES)
    return add_window_tables(bias, mask_ptr, None, query, valid, position, key_valid, QUERIES, KEYS, False)


@triton.jit
def largest_bias(bias_ptr, mask_ptr, query, QUERIES: tl.constexpr, KEYS: tl.constexpr, BLOCK_N: tl.constexpr):
    """The largest bias of each query, over all positions."""
    top = tl.full(query.shape, NO_KEY, tl.float32)
    for start in range(0, KEYS, BLOCK_N):
        added = bias_and_mask(bias_ptr, mask_ptr, query, start + tl.arange(0, BLOCK_N), QUERIES, KEYS)
        top = tl.maximum(top, tl.max(added, 0))
    return top


@triton.jit
def exponentials(bias_ptr, mask_ptr, region_ptr, query, position, top, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """(positions, queries): exp2(bias - top), raised."""
    factor = 2.0**EXP_OFFSET
    if region_ptr is not None:
        foreign = is_foreign(region_ptr, query, query < QUERIES, position, position < KEYS)
        factor = tl.where(foreign, tl.exp2(EXP_OFFSET - FOREIGN), factor)
    return tl.exp2(bias_and_mask(bias_ptr, mask_ptr, query, position, QUERIES, KEYS) - top[None, :]) * factor


@triton.jit
def log_without_offset(total):
    """log2(total) less the raise, without the digits that a large logarithm would cost."""
    low = total < 1.0
    return tl.log2(tl.where(low, total, total * 2.0**-EXP_OFFSET)) - tl.where(low, EXP_OFFSET, 0.0)


@triton.jit
def exp_without_offset(x):
    """exp2(x) without the raise."""
    high = x > EXP_OFFSET
    return tl.exp2(tl.where(high, x - EXP_OFFSET, x)) * tl.where(high, 1.0, 2.0**-EXP_OFFSET)


@triton.jit
def load_is_masked(compact_index_ptr, window, valid, position, KEYS: tl.constexpr):
    """(windows, positions): 1 where a position is masked."""
    mask = valid[:, None] & (position < KEYS)[None, :]
    row = tl.load(compact_index_ptr + window.to(tl.int64)[:, None] * KEYS + position[None, :], mask=mask, other=0)
    return (row < 0).to(tl.float32)


@triton.jit
def dot_of_indicators(indicators, values, HALVES: tl.constexpr):
    """Indicators are exact in bfloat16, values in two halves nearly so; float32 where that is what is computed."""
    if HALVES:
        high = values.to(tl.bfloat16)
        low = (values - high.to(tl.float32)).to(tl.bfloat16)
        indicators = indicators.to(tl.bfloat16)
        product = tl.dot(indicators, high, tl.dot(indicators, low))
    else:
        product = tl.dot(indicators, values, input_precision="ieee")
    return product


@triton.jit
def windows_of_group(
    group, windows, period, pattern_groups, across, last_row, last_column, corner, BLOCK_W: tl.constexpr
):
    """The first window of a mask pattern, some windows of that pattern, and which of these exist.

    Mask patterns repeat every `period` windows. Without `across` all windows of a period differ, and each has
    `pattern_groups` groups. Else the windows of a period are a grid, `across` wide, where only the last row, the last
    column and the corner differ from the rest; `last_row`, `last_column` and `corner` are the numbers of their first
    groups.
    """
    number = tl.arange(0, BLOCK_W)
    if across is None:
        mask_pattern = group // pattern_groups
        window = mask_pattern + period * ((group % pattern_groups) * BLOCK_W + number)
    else:
        down = period // across
        in_column = group >= last_column
        in_row = ((group >= last_row) & (group < last_column)) | (group >= corner)
        first = tl.where(group >= corner, corner, tl.where(in_column, last_column, tl.where(in_row, last_row, 0)))
        height, width = tl.where(in_row, 1, down - 1), tl.where(in_column, 1, across - 1)
        mask_pattern = tl.where(in_row, (down - 1) * across, 0) + tl.where(in_column, across - 1, 0)
        number += (group - first) * BLOCK_W
        of_image = number % (height * width)
        window = number // (height * width) * period + mask_pattern + of_image // width * across + of_image % width
    return mask_pattern, window, window < windows


@triton.jit
def shared_bias_kernel(
    bias_ptr, compact_index_ptr, regions_ptr, mask_ptr, out_ptr,
    windows, region_windows, mask_windows, period, pattern_groups, across, last_row, last_column, corner,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HALVES: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """(heads, windows, queries): the bias of the masked key, -inf where none is masked."""
    head = tl.program_id(0) % HEADS
    query = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    mask_pattern, window, valid = windows_of_group(
        tl.program_id(0) // HEADS, windows, period, pattern_groups, across, last_row, last_column, corner, BLOCK_W
    )
    head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
    region_ptr = None if regions_ptr is None else regions_ptr + (mask_pattern % region_windows) * KEYS
    window_mask_ptr = None
    if mask_ptr is not None:
        window_mask_ptr = mask_ptr + (mask_pattern % mask_windows).to(tl.int64) * (QUERIES * KEYS)
    top = largest_bias(head_bias_ptr, window_mask_ptr, query, QUERIES, KEYS, BLOCK_N)
    total = tl.zeros((BLOCK_W, BLOCK_T), tl.float32)
    for start in range(0, KEYS, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        table = exponentials(head_bias_ptr, window_mask_ptr, region_ptr, query, position, top, QUERIES, KEYS)
        total += dot_of_indicators(load_is_masked(compact_index_ptr, window, valid, position, KEYS), table, HALVES)
    out_row = (head * windows + window).to(tl.int64)
    mask = valid[:, None] & (query < QUERIES)[None, :]
    tl.store(out_ptr + out_row[:, None] * QUERIES + query[None, :], log_without_offset(total) + top[None, :], mask=mask)


@triton.jit
def shared_bias_gradient_kernel(
    bias_ptr, compact_index_ptr, regions_ptr, mask_ptr, shared_bias_ptr, ds_ptr, d_bias_ptr,
    windows, region_windows, mask_windows,
    period, pattern_groups, across, last_row, last_column, corner, groups, groups_each,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HALVES: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """d_bias (chunks, heads, keys, queries), float32, of masked keys, from `ds` (heads, windows, queries) of theirs.

    A masked position gets the share exp(bias - masked bias) of what its window's masked key got.
    """
    head = tl.program_id(0)
    query_tiles: tl.constexpr = (QUERIES + BLOCK_T - 1) // BLOCK_T
    query = (tl.program_id(2) % query_tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    position = (tl.program_id(2) // query_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    head_bias_ptr = bias_ptr + head * (KEYS * QUERIES)
    d_bias = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    first = tl.program_id(1) * groups_each
    for group in range(first, tl.minimum(first + groups_each, groups)):
        mask_pattern, window, valid = windows_of_group(
            group, windows, period, pattern_groups, across, last_row, last_column, corner, BLOCK_W
        )
        region_ptr = None if regions_ptr is None else regions_ptr + (mask_pattern % region_windows) * KEYS
        window_mask_ptr = None
        if mask_ptr is not None:
            window_mask_ptr = mask_ptr + (mask_pattern % mask_windows).to(tl.int64) * (QUERIES * KEYS)
        top = largest_bias(head_bias_ptr, window_mask_ptr, query, QUERIES, KEYS, BLOCK_N)
        table = exponentials(head_bias_ptr, window_mask_ptr, region_ptr, query, position, top, QUERIES, KEYS)
        row = (head * windows + window).to(tl.int64)[:, None] * QUERIES + query[None, :]
        mask = valid[:, None] & (query < QUERIES)[None, :]
        shared_bias = tl.load(shared_bias_ptr + row, mask=mask, other=0.0)
        ds = tl.load(ds_ptr + row, mask=mask, other=0.0)
        part = tl.where(ds == 0.0, 0.0, ds * exp_without_offset(top[None, :] - shared_bias))
        indicators = tl.trans(load_is_masked(compact_index_ptr, window, valid, position, KEYS))
        d_bias += table * dot_of_indicators(indicators, part, HALVES)
    d_bias_ptr += (tl.program_id(1) * HEADS + head).to(tl.int64) * (KEYS * QUERIES)
    pair = position[:, None] * QUERIES + query[None, :]
    tl.store(d_bias_ptr + pair, d_bias, mask=(position < KEYS)[:, None] & (query < QUERIES)[None, :])
