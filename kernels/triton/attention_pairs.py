"""Windows for the attention kernels: their tokens, and the biases that are added to their scores.

A *row* here is a row of a tensor of tokens, counted from the first row of the window. Scores are (queries, keys) or
(keys, queries), in float32 and in units of log 2, as are the bias and the scale: devices have exp2.
"""

import triton
import triton.language as tl

NO_KEY = tl.constexpr(-1e29)  # scores far below exclude the key (kernels/reference.py); a running maximum starts here
FOREIGN = tl.constexpr(100 * 1.4426950408889634)  # subtracted for keys of other shift regions


@triton.jit
def compact_index_kernel(offsets_ptr, position_ptr, compact_index_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """(windows, positions), which were -1: the row of the visible token at each position of each window."""
    window = tl.program_id(0)
    first = tl.load(offsets_ptr + window)
    row = tl.arange(0, BLOCK)
    visible = row < tl.load(offsets_ptr + window + 1) - first
    position = tl.load(position_ptr + first + row, mask=visible, other=0)
    tl.store(compact_index_ptr + window.to(tl.int64) * SIZE + position, row, mask=visible)


@triton.jit
def window_rows(window, windows, offsets_ptr, ROWS: tl.constexpr):
    """First row and number of rows: of adjacent windows in a list, or of one in a windowed tensor."""
    first = window.to(tl.int64) * ROWS
    count = ROWS
    if offsets_ptr is not None:
        begin = tl.load(offsets_ptr + window)
        count = tl.load(offsets_ptr + window + windows) - begin
        first = begin.to(tl.int64)
    return first, count


@triton.jit
def windows_that_fit(offsets_ptr, left, MAX_ROWS: tl.constexpr):
    """How many of the first `left` windows of a list have at most MAX_ROWS rows together; at least 1."""
    begin = tl.load(offsets_ptr)
    taken = 1
    while (taken < left) & (tl.load(offsets_ptr + tl.minimum(taken + 1, left)) - begin <= MAX_ROWS):
        taken += 1
    return taken


@triton.jit
def take_windows(
    window, left, offsets_ptr, regions_ptr, region_windows, MAX_ROWS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PACKED: tl.constexpr, ONLY_VISIBLE: tl.constexpr,
):  # fmt: skip
    """How many of the next `left` windows are taken at once; first row and number of rows of their keys and queries.

    With PACKED, these are windows of at most MAX_ROWS rows together; else one. (Triton 3.6 cannot return None here.)
    """
    taken = 1
    if PACKED:
        if regions_ptr is not None:  # those of an image lie behind each other
            left = tl.minimum(left, region_windows - window % region_windows)
        taken = windows_that_fit(offsets_ptr + window, left, MAX_ROWS)
    key_first, key_count = window_rows(window, taken, offsets_ptr, KEYS)
    out_first, out_count = key_first, key_count
    if not ONLY_VISIBLE:
        out_first, out_count = window_rows(window, 1, None, QUERIES)
    return taken, key_first, key_count, out_first, out_count


@triton.jit
def window_of_rows(row, offsets_ptr, windows):
    """Which of the first windows of a list each row lies in, counted from the first one's first."""
    begin = tl.load(offsets_ptr)
    window = tl.zeros_like(row)
    for i in range(1, windows):
        window += (row >= tl.load(offsets_ptr + i) - begin).to(tl.int32)
    return window


@triton.jit
def windows_to_skip(offsets_ptr, left, min_rows):
    """How many of the first `left` windows of a list have at most `min_rows` rows."""
    skipped = 0
    while (skipped < left) & (first_count(offsets_ptr + tl.minimum(skipped, left - 1)) <= min_rows):
        skipped += 1
    return skipped


@triton.jit
def first_count(offsets_ptr):
    return tl.load(offsets_ptr + 1) - tl.load(offsets_ptr)


@triton.jit
def query_rows(
    start, out_count, position_ptr, compact_index_ptr, QUERIES: tl.constexpr, COMPACT_Q: tl.constexpr,
    ONLY_VISIBLE: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Queries from row `start` of the output: their rows there and in q (-1: masked), positions, and which exist."""
    out_row = start + tl.arange(0, BLOCK_T)
    valid = out_row < out_count
    position = out_row
    q_row = out_row
    if ONLY_VISIBLE:
        position = tl.load(position_ptr + out_row, mask=valid, other=0)
    elif COMPACT_Q:
        q_row = tl.load(compact_index_ptr + out_row, mask=valid, other=0)
    return out_row, q_row, position, valid


@triton.jit
def load_head(base_ptr, row, valid, STRIDE: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr):
    """One head of the rows, (rows, BLOCK_D), 0 outside of the valid rows and the first LANES columns."""
    dim = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if LANES < BLOCK_D:
        mask = mask & (dim < LANES)[None, :]
    return tl.load(base_ptr + row[:, None] * STRIDE + dim[None, :], mask=mask, other=0.0)


@triton.jit
def store_head(base_ptr, row, valid, tile, STRIDE: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr):
    dim = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if LANES < BLOCK_D:
        mask = mask & (dim < LANES)[None, :]
    tl.store(base_ptr + row[:, None] * STRIDE + dim[None, :], tile.to(base_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_shared(shared_qkv_ptr, WHICH: tl.constexpr, head, HEADS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The q, k or v (WHICH = 0, 1, 2) that all masked tokens share, (BLOCK_D,), float32."""
    return tl.load(shared_qkv_ptr + (WHICH * HEADS + head) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.float32)


@triton.jit
def load_queries(
    q_ptr, row, valid, shared_qkv_ptr, head,
    STRIDE: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One head of q; rows of masked tokens, -1, get the q that they share."""
    if shared_qkv_ptr is not None and PADDED:  # it is read in their position: both begin at a sector
        dim = tl.arange(0, BLOCK_D)
        row_ptr = tl.where(row >= 0, q_ptr + row * STRIDE, shared_qkv_ptr + head * BLOCK_D)
        row_ptr = tl.multiple_of(row_ptr, 16)
        mask = valid[:, None] & (dim < LANES)[None, :]
        q = tl.load(row_ptr[:, None] + dim[None, :], mask=mask, other=0.0)
    else:
        q = load_head(q_ptr, row, valid & (row >= 0), STRIDE, LANES, BLOCK_D)
        if shared_qkv_ptr is not None:
            shared = tl.load(shared_qkv_ptr + head * BLOCK_D + tl.arange(0, BLOCK_D))
            q = tl.where((row >= 0)[:, None], q, shared[None, :])
    return q


@triton.jit
def is_foreign(region_ptr, query_position, query_valid, key_position, key_valid):
    """(keys, queries): whether they lie in different shift regions."""
    key_region = tl.load(region_ptr + key_position, mask=key_valid, other=0)
    return key_region[:, None] != tl.load(region_ptr + query_position, mask=query_valid, other=0)[None, :]


@triton.jit
def load_bias(bias_ptr, query_position, query_valid, key_position, key_valid, QUERIES: tl.constexpr):
    """(keys, queries): the position bias of a head, -inf where there is no key.

    It lies like this in memory: the positions of visible keys pick rows of adjacent queries.
    """
    pair = key_position[:, None] * QUERIES + query_position[None, :]
    return tl.load(bias_ptr + pair, mask=key_valid[:, None] & query_valid[None, :], other=float("-inf"))


@triton.jit
def region_key(row, position, valid, region_ptr, offsets_ptr, windows, KEYS: tl.constexpr):
    """A number that rows share which lie in the same window, of `windows` adjacent ones, and shift region."""
    window = window_of_rows(row, offsets_ptr, windows)
    key = window << 16
    if region_ptr is not None:
        key += tl.load(region_ptr + window * KEYS + position, mask=valid, other=0)
    return key


@triton.jit
def add_window_tables(
    bias, mask_ptr, region_ptr, query_position, query_valid, key_position, key_valid,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, EXCLUDE: tl.constexpr,
    query_row=None, key_row=None, offsets_ptr=None, windows=1,
):  # fmt: skip
    """The position bias with window mask and shift regions: all that is added to scores.

    windows: of how many adjacent ones the rows are; offsets_ptr: those of these windows. Keys of others are no keys.
    """
    if mask_ptr is not None:
        pair = key_position[:, None] * QUERIES + query_position[None, :]
        bias += tl.load(mask_ptr + pair, mask=key_valid[:, None] & query_valid[None, :], other=0.0)
    several = False
    if region_ptr is not None:
        several = tl.load(region_ptr) != tl.load(region_ptr + KEYS - 1)  # then first and last position differ
    if offsets_ptr is not None:  # noqa: SIM102 (known when it is compiled)
        if windows > 1:
            query_region = region_key(query_row, query_position, query_valid, region_ptr, offsets_ptr, windows, KEYS)
            key_region = region_key(key_row, key_position, key_valid, region_ptr, offsets_ptr, windows, KEYS)
            bias = tl.where(key_region[:, None] != query_region[None, :], float("-inf"), bias)
            several = False
    if region_ptr is not None:  # noqa: SIM102
        if several:
            foreign = is_foreign(region_ptr, query_position, query_valid, key_position, key_valid)
            bias = tl.where(foreign, float("-inf") if EXCLUDE else bias - FOREIGN, bias)
    return bias


@triton.jit
def shared_scores(q, k_shared, shared_bias_ptr, row, valid, scale):
    """The score of the one key that stands for the masked ones; its bias is theirs, exponentials added up."""
    shared_bias = tl.load(shared_bias_ptr + row, mask=valid, other=float("-inf"))
    return tl.sum(q.to(tl.float32) * k_shared[None, :], 1) * scale + shared_bias
