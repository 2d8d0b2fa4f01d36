"""The specification of every operation in plain PyTorch: any floating dtype, any device, as the papers read.

It is also the backend "reference". Read it beside kernels/README.md. Masked tokens take part as the method defines it
(arXiv 2303.13132): they are expanded to full windows here, and an ordinary softmax follows. The other backends compute
the same numbers from the visible tokens alone.

Shape legend: B images, L tokens of an image, C channels; W windows of the batch, N positions of a window, T queries, S
keys, H heads, D head dim; R entries of the compact list.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import Backend
from .convolution import ConvolutionInputs
from .geometry import NORM_EPSILON, Windows, relative_position_bias, shift_regions, token_order
from .noise import NormalInputs, gaussian_noise
from .philox import RESERVED, counter_words
from .pixel_embedding import Embedding, EmbeddingInputs
from .swin_block import BlockInputs
from .token_mask import RandomWordsInputs, TokenMaskInputs
from .visible import CompactList, VisibleTokens, VisibleTokensInputs
from .window_attention import AttentionInputs


def window_attention(inputs: AttentionInputs) -> Tensor:
    q, k, v, bias_HTS, scale, visible, shared_qkv, window_mask = inputs
    masked_take_part = shared_qkv is not None or k.dim() == 4
    only_visible_queries = not masked_take_part and q.dim() < 4
    if visible is not None:
        shared_q, shared_k, shared_v = shared_qkv if shared_qkv is not None else (0.0, 0.0, 0.0)
        q = expand(q, visible, shared_q) if q.dim() < 4 else q
        k = expand(k, visible, shared_k) if k.dim() < 4 else k
        v = expand(v, visible, shared_v) if v.dim() < 4 else v
    score_WHTS = scale * torch.einsum("wthd,wshd->whts", q, k) + bias_HTS
    if window_mask is not None:
        score_WHTS = (score_WHTS.unflatten(0, (-1, len(window_mask))) + window_mask[None, :, None]).flatten(0, 1)
    if visible is None:
        return torch.einsum("whts,wshd->wthd", _softmax(score_WHTS), v)

    foreign = torch.zeros((), dtype=torch.bool, device=q.device)  # keys of another shift region
    if visible.regions is not None:
        foreign = visible.regions[:, None, :, None] != visible.regions[:, None, None, :]
        foreign = foreign.repeat(visible.batch, 1, 1, 1)
    if masked_take_part:
        p_WHTS = _softmax(torch.where(foreign, score_WHTS - 100.0, score_WHTS))
    else:
        excluded = foreign | ~visible.keep_by_head().transpose(1, 2)[:, :, None, :]
        p_WHTS = _softmax(score_WHTS.masked_fill(excluded, float("-inf")))
    out_WTHD = torch.einsum("whts,wshd->wthd", p_WHTS, v)
    return compress(out_WTHD, visible) if only_visible_queries else out_WTHD


def swin_block(inputs: BlockInputs) -> Tensor:
    """Norm, mask, shift, windows, attention, reverse, MLP. Computes every token, and keeps what the mode keeps."""
    x, w, windows, visible, mode, drop_path_scale = inputs
    heads, (shift_h, shift_w) = w.position_bias_table.shape[1], windows.shift
    scale_2B111 = x.new_ones(2, len(x)) if drop_path_scale is None else drop_path_scale.to(x.dtype)
    scale_2B111 = scale_2B111[:, :, None, None, None]
    keep_BHL = None if visible is None else visible.image_keep
    if keep_BHL is not None and keep_BHL.dim() == 2:
        keep_BHL = keep_BHL[:, None]

    # Norm and mask: a masked token is 0, or the mask token, before the qkv product. Each head may have its own mask.
    normed = F.layer_norm(x, x.shape[-1:], w.norm1_weight, w.norm1_bias, NORM_EPSILON)

    def qkv_of(tokens: Tensor) -> Tensor:  # (B, height, width, C) -> (B, height, width, 3, H, D)
        return F.linear(tokens, w.qkv_weight, w.qkv_bias).unflatten(-1, (3, heads, -1))

    qkv = qkv_of(normed)
    if keep_BHL is not None and mode in ("zero", "token"):
        fill = w.mask_token if mode == "token" and w.mask_token is not None else torch.zeros_like(w.norm1_bias)
        masks = [keep.view(*x.shape[:3], 1) for keep in keep_BHL.unbind(1)]
        masked = [qkv_of(torch.where(keep, normed, fill)) for keep in masks]
        qkv = torch.stack([masked[head % len(masked)][..., head, :] for head in range(heads)], -2)

    # Shift and windows.
    shifted = qkv.roll((-shift_h, -shift_w), (1, 2))
    q_WNHD, k_WNHD, v_WNHD = partition(shifted, windows).unbind(2)
    regions_WN = shift_regions(windows, x.device).repeat(len(x), 1)
    foreign_WNN = regions_WN[:, :, None] != regions_WN[:, None, :]

    # Attention, in heads. Where masked tokens are no keys, neither are those of other shift regions.
    bias_HNN = relative_position_bias(w.position_bias_table, windows.window)
    score_WHNN = q_WNHD.shape[-1] ** -0.5 * torch.einsum("wqhd,wkhd->whqk", q_WNHD, k_WNHD) + bias_HNN
    if keep_BHL is not None and mode in ("drop", "visible"):
        keep_WN = partition(keep_BHL.view(*x.shape[:3]).roll((-shift_h, -shift_w), (1, 2)), windows)
        excluded_WNN = foreign_WNN | ~keep_WN[:, None, :]
        score_WHNN = score_WHNN.masked_fill(excluded_WNN[:, None], float("-inf"))
    else:
        score_WHNN = score_WHNN - 100.0 * foreign_WNN[:, None].to(x.dtype)
    out_WNHD = torch.einsum("whqk,wkhd->wqhd", _softmax(score_WHNN), v_WNHD)

    # Reverse, residual, MLP.
    attended = reverse(out_WNHD.flatten(2), windows, len(x)).roll((shift_h, shift_w), (1, 2))
    y = x + scale_2B111[0] * F.linear(attended, w.proj_weight, w.proj_bias)
    hidden = F.layer_norm(y, y.shape[-1:], w.norm2_weight, w.norm2_bias, NORM_EPSILON)
    hidden = F.gelu(F.linear(hidden, w.fc1_weight, w.fc1_bias))
    y = y + scale_2B111[1] * F.linear(hidden, w.fc2_weight, w.fc2_bias)
    return torch.where(keep_BHL.view(*x.shape[:3], 1), y, x) if keep_BHL is not None and mode == "visible" else y


def partition(image: Tensor, windows: Windows) -> Tensor:
    """(B, height, width, ...) -> (W, N, ...)."""
    (height, width), rest = windows.window, image.shape[3:]
    cut = image.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return cut.transpose(2, 3).reshape(len(image) * windows.count, windows.size, *rest)


def reverse(tokens: Tensor, windows: Windows, batch: int) -> Tensor:
    """(W, N, ...) -> (batch, height, width, ...), the inverse of `partition`."""
    (height, width), rest = windows.window, tokens.shape[2:]
    cut = tokens.view(batch, windows.height // height, windows.width // width, height, width, *rest)
    return cut.transpose(2, 3).reshape(batch, windows.height, windows.width, *rest)


def _softmax(score: Tensor) -> Tensor:
    """Over the keys; those at or below -1e29 are excluded, and a query without any key gets 0."""
    excluded = score <= -1e29
    alone = excluded.all(-1, keepdim=True)
    score = score.masked_fill(excluded & ~alone, float("-inf")).masked_fill(alone, 0.0)
    return score.softmax(-1).masked_fill(alone, 0.0)


def expand(compact: Tensor, visible: VisibleTokens, fill: Tensor | float) -> Tensor:
    """Compact (R, H, D) -> windows (W, N, H, D), whose masked positions hold `fill` (H, D).

    Per-head masks: compact is (R, D), one entry per token and head.
    """
    spare = compact.new_zeros(1, *compact.shape[1:])  # so that an empty list has an entry to look at
    full = torch.cat([compact, spare])[visible.compact_index()]
    if visible.heads is not None:
        full = full.unflatten(0, (-1, visible.heads)).transpose(1, 2)
    return torch.where(visible.keep_by_head()[..., None], full, fill)


def compress(full: Tensor, visible: VisibleTokens) -> Tensor:
    """Windows (W, N, H, D) -> compact (R, ...), the inverse of `expand`; unused entries are 0."""
    of_segments = full if visible.heads is None else full.transpose(1, 2).flatten(0, 1)
    capacity = len(visible.token_index)
    entry = torch.where(visible.keep, visible.compact_index(), capacity).flatten()
    entries = full.new_zeros(capacity + 1, *of_segments.shape[2:])
    return entries.index_copy(0, entry, of_segments.flatten(0, 1))[:-1]


def convolution(inputs: ConvolutionInputs) -> Tensor:
    x, weight, bias = inputs
    # The permutes are views in the channels-last memory format: no copy.
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2)
    return y.permute(0, 2, 3, 1).contiguous()


def pixel_embedding(inputs: EmbeddingInputs) -> Embedding:
    image, (height, width), noise, input_mask, mean, image_range, mask_value, weights, residuals = inputs
    image_height, image_width = image.shape[-2:]
    if noise is not None:
        image = gaussian_noise(image, *noise)
    if input_mask is not None:
        # Cropped before the padding: a reflected copy of a masked pixel must not give it away.
        image = image.masked_fill(input_mask[:, None, :image_height, :image_width], mask_value)
    if (image_height, image_width) != (height, width):
        image = F.pad(image, (0, width - image_width, 0, height - image_height), mode="reflect")
    image = (image - mean.view(-1, 1, 1)) * image_range
    channels_last = image.permute(0, 2, 3, 1).contiguous()
    convolved = convolution(ConvolutionInputs(channels_last, weights.weight, weights.bias))
    features = F.layer_norm(convolved, convolved.shape[-1:], weights.norm_weight, weights.norm_bias, NORM_EPSILON)
    return Embedding(features, image, convolved) if residuals else Embedding(features)


def random_words(inputs: RandomWordsInputs) -> Tensor:
    seed, draw, sample, first, words, first_head, heads = inputs
    index_N = first + torch.arange(words, device=sample.device)
    head_H1 = first_head + torch.arange(heads, device=sample.device)[:, None]
    return counter_words(index_N, sample[:, None, None], draw, head_H1, seed)[0].expand(len(sample), heads, words)


def token_mask(inputs: TokenMaskInputs) -> Tensor:
    seed, draw, sample, percent, windows, heads, exact = inputs
    percent_BH1 = percent.clamp(0, 100)[:, :, None]
    word_BHL = random_words(RandomWordsInputs(seed, draw, sample, 0, windows.tokens, 0, heads))
    if not exact:
        return word_BHL < (percent_BH1 << 32) // 100
    order_WN = token_order(windows, sample.device)
    rank_BHWN = word_BHL[:, :, order_WN].sort(dim=-1, stable=True).indices.argsort(dim=-1)
    masked_BHWN = rank_BHWN < ((percent_BH1 * windows.size + 50) // 100)[..., None]
    mask = torch.zeros(len(sample), heads, windows.tokens, dtype=torch.bool, device=sample.device)
    return mask.index_copy(2, order_WN.flatten(), masked_BHWN.flatten(2))


def normal(inputs: NormalInputs) -> Tensor:
    seed, draw, sample, channels, pixels, dtype = inputs
    index = torch.arange(pixels, device=sample.device)
    numbers: list[Tensor] = []
    for group in range(-(-channels // 4)):
        head = torch.full((), RESERVED - 1 - group, dtype=torch.int64, device=sample.device)
        words = counter_words(index, sample[:, None], draw, head, seed)
        for radius_word, angle_word in (words[:2], words[2:]):
            radius = (-2 * torch.log(((radius_word >> 8) + 1).to(dtype) / 2**24)).sqrt()
            angle = 2 * math.pi * ((angle_word >> 8).to(dtype) / 2**24)
            numbers += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(numbers[:channels], 1)


def visible_tokens(inputs: VisibleTokensInputs) -> CompactList:
    keep, windows = inputs
    device, size = keep.device, windows.size
    order_WN = token_order(windows, device)
    token_BWN = order_WN + windows.tokens * torch.arange(len(keep), device=device)[:, None, None]
    keep_S = keep[..., order_WN]
    if keep.dim() == 3:
        keep_S = keep_S.transpose(1, 2)  # (B, W, H, N)
        token_BWN = token_BWN[:, :, None].expand(-1, -1, keep.shape[1], -1)
    flat = keep_S.reshape(-1)
    counts = keep_S.reshape(-1, size).sum(1, dtype=torch.int32)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)])
    if device.type == "cpu" and not torch.compiler.is_compiling():
        slots = flat.nonzero().squeeze(1)
    else:  # room for every token: no shape depends on data
        entry = torch.where(flat, flat.cumsum(0) - 1, flat.numel())
        slots = torch.zeros(flat.numel() + 1, dtype=torch.int64, device=device)
        slots = slots.scatter(0, entry, torch.arange(flat.numel(), device=device))[:-1]
    return CompactList(
        token_index=token_BWN.reshape(-1)[slots],
        position=(slots % size).int(),
        offsets=offsets,
        keep=keep_S.reshape(-1, size),
        regions=shift_regions(windows, device).int() if windows.shift != (0, 0) else offsets.new_empty(0, size),
    )


BACKENDS = [
    Backend(function.__name__, "reference", function, lambda inputs: None)
    for function in (
        window_attention,
        swin_block,
        pixel_embedding,
        convolution,
        random_words,
        token_mask,
        normal,
        visible_tokens,
    )
]
