"""The two networks that are compared, eager public-style and ours, and a training step of either.

A step is forward, L1, backward, fused Adam and EMA. The eager network gets its keep-masks, drawn outside the timing;
ours draws its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from masked_swin import MaskedSwinIR, ModelConfig
from tests.support.public_network import PublicNetwork, windowed_keep

SIZE, BATCH = (64, 64), 4
WIDE = ModelConfig(  # SwinIR-M
    embed_dim=180, depths=(6,) * 6, num_heads=(6,) * 6, resi_connection="1conv", input_mask=None, attention_mask=None
)


def public_network(config: ModelConfig, size: tuple[int, int] = SIZE) -> PublicNetwork:
    """With the shift masks of images of this size in store, as it is fastest."""
    options = {"resi_connection": config.resi_connection, "drop_path_rate": config.drop_path_rate, "img_size": size}
    return PublicNetwork(config.embed_dim, config.depths, config.num_heads, config.window_size, **options)


def public_forward(config: ModelConfig, *, compiled: bool = False) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The eager network in training mode, and its pass over a batch."""
    network = public_network(config).train()
    keep = None
    if config.attention_mask is not None:
        masks = torch.rand(sum(config.depths), BATCH, SIZE[0] * SIZE[1]) >= config.attention_mask
        window = config.window_size
        keep = [windowed_keep(mask, SIZE, window, window // 2 * (i % 2)) for i, mask in enumerate(masks)]
    x = torch.rand(BATCH, 3, *SIZE)
    run = torch.compile(network) if compiled else network
    return network, lambda: run(x, keep)


def our_forward(config: ModelConfig, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Ours in training mode; bf16 by autocast."""
    network = MaskedSwinIR(config).train()
    x = torch.rand(BATCH, 3, *SIZE)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return network(x).float()

    return network, run


def training_step(network: nn.Module, run: Callable[[], Tensor]) -> Callable[[], None]:
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    average = [parameter.detach().clone() for parameter in parameters]
    target = torch.rand(BATCH, 3, *SIZE)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.l1_loss(run(), target).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-3)

    return step
