"""Tile sides, warps and registers of the attention kernels: as much as no target spills, where that was looked at.

A *row* is one head of one token, in bytes: a tile of queries holds so many bytes of rows. Compact keys come from a
list, in tiles of 16, for a program of mostly one warp; windows full of keys have four warps, and larger tiles.
"""

from typing import TYPE_CHECKING, Any

from .attention_backward import backward_kernel
from .launch import tile_side
from .tuning import tuned

if TYPE_CHECKING:
    from .attention_call import Attention


def attention_tiles(call: "Attention", kernel: Any, *with_same_tiles: Any) -> dict[str, int]:
    """BLOCK_T queries, BLOCK_S keys and num_warps of a program of the forward kernel, or of the backward kernels."""
    constants, backward, compact = call.constants, kernel is backward_kernel, call.compact_keys
    queries, keys = tile_side(call.queries), tile_side(call.keys)
    itemsize = call.q.element_size()
    row = constants["BLOCK_D"] * itemsize
    partial = constants["LANES"] < constants["BLOCK_D"]  # loads with a condition take more registers
    wide = row >= 64

    kept = 2048 if partial and wide and itemsize == 2 else 4096
    if call.compact_output:
        kept = 1024  # few queries, as few keys
    elif backward and (compact or queries > 64):
        kept = 2048 if call.padded or itemsize == 4 else 1024
    side = max(16, min(64, queries, kept // row))
    if compact and backward and side < queries:  # two launches
        uneven = itemsize == 4 and call.queries % 32
        side = min(16 if uneven else 32, side)

    if compact:
        warps = max(1, min(4, row // 64)) if backward or itemsize == 2 else 4
        if backward and ((side > 16 and call.queries % side) or (partial and wide)):
            warps = max(warps, 2)
    elif backward:
        warps = 8 if wide and queries <= 64 and (itemsize == 4 or not partial) else 4
    else:
        warps = 8 if itemsize == 4 and row > 64 else 4

    most_keys = 64
    if compact:
        most_keys = side if call.compact_output and not partial else 16
    tiles = {"BLOCK_T": side, "BLOCK_S": min(most_keys, keys), "num_warps": warps}
    max_tiles = {"BLOCK_T": queries, "BLOCK_S": keys}
    return tuned(
        kernel,
        tiles,
        max_tiles=max_tiles,
        with_same_tiles=with_same_tiles,
        head_dim=call.head_dim,
        queries=call.queries,
        keys=call.keys,
        visible=compact,
        compact=call.compact_output,
        padded=call.padded,
        dtype=call.q.dtype,
    )


def max_registers(call: "Attention", kernel: Any) -> int | None:
    """All registers, where ptxas would else spill some to have one more program run at once; None where it does not."""
    itemsize = call.q.element_size()
    small = call.constants["BLOCK_D"] * itemsize <= 64 and (call.padded or itemsize == 4)
    in_forward = itemsize == 2 or call.keys <= 64
    return None if small and not call.compact_keys and (kernel is backward_kernel or in_forward) else 255
