"""The masked SwinIR of "Masked Image Training for Generalizable Deep Image Denoising" (arXiv 2303.13132)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from masked_swin.config import ModelConfig
from masked_swin.denoiser import Denoiser
from masked_swin.kernels import Embedding, EmbeddingWeights, Noise, pixel_embedding, ratio_tensor
from masked_swin.kernels import gaussian_noise as add_noise
from masked_swin.layers import ResidualGroup, around_blocks, channels_last, residual_conv
from masked_swin.masking import (
    AttentionMasks,
    MaskKey,
    check_seed,
    drop_path_scales,
    extend_by_edge,
    input_mask,
    mask_input,
    padded_size,
)


class MaskedSwinIR(Denoiser):
    """A denoiser with SwinIR's parameter names.

    As published, the input mask is on in training only, and the attention mask in training and in use.

    Masks, noise and stochastic depth are functions of a `MaskKey`. Without one, a pass that needs a key makes it from
    one number of torch's default generator, as dropout does. So `torch.manual_seed` repeats the masks, and activation
    checkpointing computes with the same masks again.

    Args:
        config: the network; `PRESETS` holds the usual ones.
        backend: that of the Swin blocks, or None for the first that can run. Convolutions and the embedding of pixels
            take the first that can run. With "reference" they take that, so that all of the network can be
            differentiated twice.
    """

    config: ModelConfig
    mean: Tensor
    mask_seed: Tensor
    input_mask_ratio: Tensor | None
    attention_mask_ratio: Tensor | None

    def __init__(self, config: ModelConfig, *, backend: str | None = None) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise ValueError(f"config must be a ModelConfig, for example PRESETS['small'], got {config!r}")
        self.config, self.backend = config, backend
        kernel, dim = config.conv_first_kernel, config.embed_dim
        self.conv_first = nn.Conv2d(config.in_channels, dim, kernel, padding=kernel // 2)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(dim)})
        self.layers = nn.ModuleList(ResidualGroup(config, group, backend) for group in range(len(config.depths)))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = residual_conv(config)
        self.conv_last = nn.Conv2d(dim, config.in_channels, 3, padding=1)
        self.register_buffer("mean", torch.tensor(config.image_mean).view(1, -1, 1, 1), persistent=False)
        # Seed and ratios are tensors, so that compiled and captured graphs read new values at every pass.
        self.register_buffer("mask_seed", torch.tensor(0), persistent=False)
        for name in ("input_mask", "attention_mask"):
            ratio = getattr(config, name)
            self.register_buffer(f"{name}_ratio", None if ratio is None else ratio_tensor(ratio), persistent=False)
        self.to(memory_format=torch.channels_last)

    def seed_masks(self, seed: int) -> None:
        """Choose the family of the masks that the network draws without a key: `seed` in [0, 2^63), at first 0.

        Two networks with different seeds draw different masks from the same state of torch's generator.
        """
        check_seed("seed", seed)
        self.mask_seed.fill_(seed)

    def _own_key(self, x: Tensor) -> MaskKey:
        """Make a key from torch's default generator. Sample ids continue from rank to rank of a process group."""
        word = torch.randint(2**63 - 1, (), device=x.device)
        first = len(x) * dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return MaskKey(self.mask_seed ^ word, torch.zeros_like(word), first + torch.arange(len(x), device=x.device))

    def set_mask_ratios(
        self,
        *,
        input_mask: float | tuple[float, float] | None = None,
        attention_mask: float | tuple[float, float] | None = None,
    ) -> None:
        """Change the ratios of the masks during training; None leaves a ratio unchanged.

        A compiled network is compiled again only if a number becomes a range, or a range a number. `config`, which
        checkpoints hold, keeps the ratios that the network was made with.

        Raises:
            ValueError: `ModelConfig` would refuse the ratio, or the network has no such mask.
        """
        for name, ratio in (("input_mask", input_mask), ("attention_mask", attention_mask)):
            if ratio is None:
                continue
            buffer = getattr(self, f"{name}_ratio")
            if buffer is None:
                raise ValueError(f"this network has no {name} whose ratio could be set; ModelConfig.{name} turns it on")
            value = ratio_tensor(ratio, buffer.device)
            if value.shape == buffer.shape:
                buffer.copy_(value)  # in place: a captured graph reads the same memory
            else:
                setattr(self, f"{name}_ratio", value)

    def mask_input(self, image: Tensor, key: MaskKey) -> Tensor:
        """Return images (B, C, H, W) with the input mask of the key: masked pixels are `config.input_mask_value`."""
        self._check(image, key)
        return mask_input(image, self.config, key, self.input_mask_ratio)

    def forward(
        self,
        x: Tensor,
        *,
        key: MaskKey | None = None,
        noise_sigma: float = 0.0,
        attention_mask: bool = True,
        origin: tuple[int, int] | None = None,
    ) -> Tensor:
        """Denoise images.

        Args:
            x: (B, C, H, W), values in [0, 1], any size; dtype and device are those of the parameters. Images are
                reflected at the right and bottom up to whole windows. Where reflection cannot fill the window, the
                last row or column is repeated.
            key: the key of masks, stochastic depth and noise. None makes one from torch's default generator on the
                device of x, in evaluation too if the attention is masked. Its sample ids are 0, 1, ... and, in a
                process group, continue from rank to rank.
            noise_sigma: standard deviation, in the units of x, of the Gaussian noise that training adds before the
                input mask, as `masking.gaussian_noise` does. In evaluation it must be 0.
            attention_mask: False leaves the attention unmasked.
            origin: (top, left) of x in a larger image. Attention masks then belong to coordinates of that image, and do
                not depend on how it is cut. With `attention_mask_exact` they do depend on it.

        Returns:
            (B, C, H, W), not clipped.

        Raises:
            ValueError: for a wrong shape, dtype or device, or noise in evaluation.
        """
        config = self.config
        self._check(x, key)
        masks_input = self.training and config.input_mask is not None
        masks_attention = attention_mask and config.attention_mask is not None
        drops_paths = self.training and config.drop_path_rate > 0
        if noise_sigma and not (self.training and noise_sigma > 0):
            raise ValueError(
                f"noise_sigma must be 0, or positive in training, got {noise_sigma} with training={self.training}: "
                "masked_swin.masking.gaussian_noise adds noise to any image"
            )
        if noise_sigma > 1:
            raise ValueError(
                f"noise_sigma must be at most 1, the range of the images, got {noise_sigma}: "
                f"in units of 8 bits write {noise_sigma:g} / 255"
            )
        if key is None and (masks_input or masks_attention or drops_paths or noise_sigma):
            key = self._own_key(x)
        height, width = x.shape[-2:]
        size = padded_size(height, width, config.window_size)
        masks = None
        if key is not None and masks_attention:
            masks = AttentionMasks(config, key, size, origin, self.attention_mask_ratio)
        drop_path_scales = self._drop_path_scales(key if drops_paths else None, x.dtype)

        noise = Noise(noise_sigma, *key) if key is not None and noise_sigma else None
        features, padded, shallow = self._embed(x, size, noise, key if masks_input else None)
        for group, scales in zip(self.layers, drop_path_scales, strict=True):
            features = group(features, masks, scales)
        out = channels_last(self.conv_after_body, self.norm(features), self.backend)
        if shallow is not None:
            out = out + shallow
        out = channels_last(self.conv_last, out, self.backend).permute(0, 3, 1, 2)
        if padded is not None:
            out = padded + out
        return (out / config.image_range + self.mean)[..., :height, :width].contiguous()

    def _embed(self, x: Tensor, size: tuple[int, int], noise: Noise | None, key: MaskKey | None) -> Embedding:
        """Return the features and, for SwinIR's global residuals, the input of the convolution and its output."""
        config, norm, bias = self.config, self.patch_embed["norm"], self.conv_first.bias
        assert isinstance(norm, nn.LayerNorm)
        assert bias is not None
        mask = None if key is None else input_mask(size, config, key, self.input_mask_ratio)
        if size[0] >= 2 * x.shape[2] or size[1] >= 2 * x.shape[3]:
            if noise is not None:
                x, noise = add_noise(x, *noise), None
            x, mask = extend_by_edge(x, mask, size)
        return pixel_embedding(
            x,
            size,
            noise=noise,
            input_mask=mask,
            mean=self.mean.flatten(),
            image_range=config.image_range,
            mask_value=config.input_mask_value,
            weights=EmbeddingWeights(self.conv_first.weight, bias, norm.weight, norm.bias),
            # A 3x3 conv_first means SwinIR, with both global residuals. The published masked network has none.
            residuals=config.conv_first_kernel == 3,
            backend=around_blocks(self.backend),
        )

    def _drop_path_scales(self, key: MaskKey | None, dtype: torch.dtype) -> list[list[Tensor | None]]:
        """Draw stochastic depth, group by group: None, or (2, B) factors of each layer, 0 or 1 / keep (mean 1)."""
        depths = self.config.depths
        scales: list[Tensor | None] = [None] * sum(depths)
        if key is not None:
            scales[1:] = drop_path_scales(self.config, key, dtype)[1:].unbind()  # the first layer's rate is 0
        return [scales[sum(depths[:group]) :][:depth] for group, depth in enumerate(depths)]

    def _check(self, x: Tensor, key: MaskKey | None) -> None:
        """Raise ValueError if the network cannot take the images or the key."""
        config, weight = self.config, self.conv_first.weight
        if not isinstance(x, Tensor):
            raise ValueError(f"images must be a tensor (B, {config.in_channels}, H, W), got {type(x).__name__}")
        if x.dim() != 4 or x.shape[1] != config.in_channels:
            raise ValueError(f"images must be (B, {config.in_channels}, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"images must be floating point in [0, 1], got {x.dtype}; use image.float() / 255")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"images are {x.dtype} but the network is {weight.dtype}; convert one, or use autocast")
        if x.device != weight.device:
            raise ValueError(f"images are on {x.device} but the network is on {weight.device}; move one of them")
        if 0 in x.shape[2:]:
            raise ValueError(f"images must have at least one pixel, got {tuple(x.shape)}")
        if key is not None and (key.sample.shape != x.shape[:1] or key.sample.device != x.device):
            raise ValueError(
                f"the mask key must name {x.shape[0]} samples on {x.device}, "
                f"got {tuple(key.sample.shape)} on {key.sample.device}"
            )
