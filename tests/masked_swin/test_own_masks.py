"""Without `key=` a network draws its masks from torch's generator, as dropout does."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig

CONFIG = ModelConfig(
    embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, input_mask=(0.2, 0.5), drop_path_rate=0.4
)


@pytest.fixture
def model() -> MaskedSwinIR:
    return MaskedSwinIR(CONFIG).train()


def gradients(model: MaskedSwinIR, out: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(out.square().sum(), list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_computes_with_the_same_masks_again(
    model: MaskedSwinIR, use_reentrant: bool, autocast: bool
) -> None:
    x = torch.rand(3, 3, 8, 12, requires_grad=True)
    found = []
    for run in (lambda x: model(x, noise_sigma=0.1), None):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if run is not None:
                out = run(x)
            else:
                out = checkpoint(lambda x: model(x, noise_sigma=0.1), x, use_reentrant=use_reentrant)
        model.zero_grad()
        out.float().square().sum().backward()  # reentrant checkpoints need backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, wanted in found[0].items():
        torch.testing.assert_close(found[1][name], wanted, rtol=0, atol=0, msg=name)


def test_manual_seed_repeats_the_masks_and_only_a_pass_that_draws_moves_the_generator(model: MaskedSwinIR) -> None:
    x = torch.rand(2, 3, 8, 8)
    torch.manual_seed(1)
    first, second = model(x), model(x)
    torch.manual_seed(1)
    assert torch.equal(model(x), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    model.eval()
    model(x, attention_mask=False)
    model(x, key=MaskKey.make(3, samples=2))
    assert torch.equal(torch.get_rng_state(), state)
    model(x)  # the attention is masked in evaluation, too
    assert not torch.equal(torch.get_rng_state(), state)


def test_seeds_are_families_of_masks(model: MaskedSwinIR) -> None:
    x, outputs = torch.rand(2, 3, 8, 8), []
    for seed in (0, 11, 11):
        torch.manual_seed(1)
        model.seed_masks(seed)
        outputs.append(model(x))
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[1], outputs[2])
    assert not any("seed" in name for name in model.state_dict())


def test_the_ranks_of_a_process_group_draw_the_masks_of_one_batch(
    model: MaskedSwinIR, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(4, 3, 8, 8)
    torch.manual_seed(1)
    whole = model(x)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(1)
        parts.append(model(x[2 * rank : 2 * rank + 2]))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_functional_call_changes_nothing_in_place(model: MaskedSwinIR) -> None:
    x = torch.rand(2, 3, 8, 8)
    reference = MaskedSwinIR(CONFIG, backend="reference").train()
    reference.load_state_dict(model.state_dict())
    parameters = dict(reference.named_parameters())

    def loss(parameters: dict[str, nn.Parameter], model: MaskedSwinIR) -> Tensor:
        return functional_call(model, parameters, (x,)).square().sum()

    torch.manual_seed(1)
    found = torch.func.grad(loss)(parameters, reference)
    torch.manual_seed(1)
    for name, wanted in gradients(reference, reference(x)).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="pass backend='reference'"):
        torch.func.grad(loss)(dict(model.named_parameters()), model)
