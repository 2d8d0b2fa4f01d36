"""The whole network against the eager public-style one: training step (batch 4 of 64x64) and inference.

A step is forward, L1, backward, fused Adam and EMA. The eager network gets its keep-masks, drawn outside the timing;
ours draws its own.
"""

import pytest
import torch
from public_network import PublicNetwork, windowed_keep

from masked_swin import PRESETS, MaskedSwinIR, ModelConfig

SIZE, BATCH = (64, 64), 4
WIDE = ModelConfig(
    embed_dim=180, depths=(6,) * 6, num_heads=(6,) * 6, resi_connection="1conv", input_mask=None, attention_mask=None
)


def training_step(network, run):
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    average = [parameter.detach().clone() for parameter in parameters]
    target = torch.rand(BATCH, 3, *SIZE)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.l1_loss(run(), target).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-3)

    return step


def pair(config: ModelConfig):
    public = PublicNetwork(
        config.embed_dim, config.depths, config.num_heads, config.window_size, resi_connection=config.resi_connection
    )
    return public.train(), MaskedSwinIR(config).train()


@pytest.mark.parametrize(
    ("name", "config", "bar"),
    [
        ("published, 75% masked", PRESETS["published"], 5.0),
        ("published, masks off", PRESETS["swinir"], 3.0),
        ("SwinIR-M size (C=180), masks off", WIDE, 1.6),
    ],
)
def test_training_step(report, name, config, bar):
    torch.manual_seed(0)
    public, ours = pair(config)
    keep = None
    if config.attention_mask is not None:
        masks = torch.rand(sum(config.depths), BATCH, SIZE[0] * SIZE[1]) >= config.attention_mask
        keep = [windowed_keep(mask, SIZE, 8, 4 * (i % 2)) for i, mask in enumerate(masks)]
    x = torch.rand(BATCH, 3, *SIZE)
    eager_step = training_step(public, lambda: public(x, keep))
    our_step = training_step(ours, lambda: ours(x))
    report(f"training step, {name}", eager_step, our_step, bar, pairs=5)


def test_inference(report):
    torch.manual_seed(0)
    public, ours = pair(PRESETS["swinir"])
    public.eval(), ours.eval()
    x = torch.rand(1, 3, 512, 768)

    def run(network):
        with torch.no_grad():
            network(x)

    report("inference 768x512, published, masks off", lambda: run(public), lambda: run(ours), 4.0, pairs=3)
