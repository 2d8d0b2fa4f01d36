"""`masked-swin demo`: two small networks trained on Gaussian noise only, compared on noises neither has seen."""

import dataclasses
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tqdm import tqdm

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig, denoise
from masked_swin.train.commands.report import Comparison, Completion, Figure, Report, Training, write_report
from masked_swin.train.config import TrainConfig
from masked_swin.train.data import folders as data
from masked_swin.train.data.degradations import NOISES, add_noise
from masked_swin.train.loop import Trainer
from masked_swin.train.metrics import psnr, ssim, to_uint8
from masked_swin.train.run_folder import WEIGHTS_FILE, RunFolder

# The published architecture but for its size and the convolution that ends a group: at such widths the bottleneck of
# "3conv" has a quarter of few channels and slows the first minute of training (at 32 channels, 600 steps: 29.3 against
# 30.7 dB). 24 channels take 1.5 times the steps of 32 in the same time and end level without masks, higher with them.
UNMASKED = ModelConfig(
    embed_dim=24,
    depths=(2, 2),
    num_heads=(2, 2),
    resi_connection="1conv",
    drop_path_rate=0.0,
    input_mask=None,
    attention_mask=None,
)
MASKED = dataclasses.replace(UNMASKED, input_mask=(0.3, 0.5), attention_mask=0.5)

# The training noise, then those never seen, at the second and at the strongest level.
IN_DOMAIN = ("gaussian", 1)
UNSEEN = tuple((noise, level) for level in (2, 4) for noise in NOISES if noise != "gaussian")
# Top left corners of the crops of the held-out images: a face and an eye.
CROPS = {"astronaut": (10, 130), "chelsea": (54, 130)}
CROP_SIZE = 192
REQUIRED_GAIN = 2.0  # dB of the unmasked network over its noisy input, in domain


def run_demo(
    output: Path, *, seconds: float = 80.0, steps: int | None = None, threads: int | None = None, seed: int = 0
) -> Path:
    """Train the unmasked twin, then the masked network from its weights; compare them; write the report.

    Each network trains for at most `seconds`: the numbers of threads and of steps, the same for both, are set by timing
    a few steps first, so they vary with the machine; all else is a function of them and the seed. `steps` and `threads`
    fix them instead.

    Returns:
        The path of report.html; checkpoints lie in the folders `unmasked` and `masked` beside it.

    Raises:
        ValueError: the unmasked network gains less than 2 dB on its noisy input in domain (the report is written).
    """
    started = time.monotonic()
    time_limit = seconds if steps is None else None
    configs = {
        "unmasked": _config(output / "unmasked", UNMASKED, seed, None),
        "masked": _config(output / "masked", MASKED, seed, str(output / "unmasked" / WEIGHTS_FILE)),
    }
    if threads is None:
        threads = _useful_threads(configs["unmasked"])
    torch.set_num_threads(threads)
    if steps is None:  # a tenth in reserve
        steps = max(1, int(0.9 * seconds / max(_step_time(config) for config in configs.values())))
    networks, trainings = {}, []
    for name, config in configs.items():
        networks[name], training = _train(name, config, steps, time_limit)
        trainings.append(training)

    images = output / "images"
    images.mkdir(parents=True, exist_ok=True)
    pairs = zip(CROPS.items(), data.builtin_images(tuple(CROPS)).images, strict=True)
    crops = {name: image[top : top + CROP_SIZE, left : left + CROP_SIZE] for (name, (top, left)), image in pairs}
    comparisons = _compare(networks, crops, images, seed)
    report = Report(
        comparisons=comparisons,
        completions=_complete(networks["masked"], crops, images, seed),
        trainings=trainings,
        held_out=list(crops),
        seed=seed,
        threads=torch.get_num_threads(),
        seconds=time.monotonic() - started,
        unmasked=UNMASKED,
        masked=MASKED,
    )
    path = write_report(report, output)
    gain = comparisons[0].psnr["unmasked"] - comparisons[0].psnr["noisy"]
    if gain < REQUIRED_GAIN:
        raise ValueError(
            f"the unmasked network gains {gain:.2f} dB on its noisy input in domain after {trainings[0].steps} steps, "
            f"expected at least {REQUIRED_GAIN:.1f} dB; train longer with --seconds or --steps (report: {path})"
        )
    return path


def _config(folder: Path, network: ModelConfig, seed: int, initial_weights: str | None) -> TrainConfig:
    return TrainConfig(
        output=str(folder),
        network=network,
        initial_weights=initial_weights,
        patch_size=32,
        batch_size=8,
        learning_rate=3e-3,
        warmup=50,
        schedule="cosine",
        ema_decay=0.98,
        seed=seed,
        device="cpu",
        validation_size=CROP_SIZE,
    )


def _train(name: str, config: TrainConfig, steps: int, time_limit: float | None) -> tuple[MaskedSwinIR, Training]:
    RunFolder(Path(config.output)).forget()  # the demo starts anew each time
    trainer = Trainer(
        dataclasses.replace(config, iterations=steps, checkpoint_interval=steps, validation_interval=steps)
    )
    limit = "" if time_limit is None else f", at most {time_limit:.0f} s"
    tqdm.write(f"{name}: {steps} steps, CPU threads: {torch.get_num_threads()}{limit}")
    started = time.monotonic()
    ending = trainer.run(time_limit=time_limit, description=f"train {name}")
    if ending in ("interrupted", "terminated"):
        raise KeyboardInterrupt if ending == "interrupted" else SystemExit(128 + signal.SIGTERM)
    training = Training(
        name=name,
        steps=trainer.step,
        planned=steps,
        seconds=time.monotonic() - started,
        batch_size=config.batch_size,
        patch_size=config.patch_size,
        warm_started=config.initial_weights is not None,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
    )
    return trainer.average, training


def _useful_threads(config: TrainConfig) -> int:
    """The number of threads that trains fastest here: on a busy machine two can be several times slower than one."""
    available = torch.get_num_threads()
    times = {}
    for threads in sorted({min(2**power, available) for power in range(available.bit_length() + 1)}):
        torch.set_num_threads(threads)
        times[threads] = _step_time(config)
    return min(times, key=lambda threads: times[threads])


def _step_time(config: TrainConfig, trials: int = 10) -> float:
    """Seconds of one step, the median of a few on a trainer that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(dataclasses.replace(config, output=folder, initial_weights=None))
    times = []
    for _ in range(trials):
        started = time.perf_counter()
        trainer.train_step()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _compare(
    networks: dict[str, MaskedSwinIR], crops: dict[str, np.ndarray], folder: Path, seed: int
) -> list[Comparison]:
    """Denoise every crop under every noise with every network; write the images; mean PSNR and SSIM per noise."""
    comparisons = []
    bar = tqdm(total=(1 + len(UNSEEN)) * len(crops), desc="denoise", unit="image", dynamic_ncols=True)
    for name, image in crops.items():
        _write(image, folder / f"{name}_clean.png")
    for noise, level in (IN_DOMAIN, *UNSEEN):
        figures, scores = [], []
        for index, (name, image) in enumerate(crops.items()):
            generator = data.generator(seed, index, data.VALIDATION_STREAM)
            noisy = to_uint8(add_noise(image.astype(np.float32) / 255, noise, level, generator))
            results = {"noisy": noisy}
            for kind, network in networks.items():
                restored = denoise(network, data.to_tensor(noisy), average=4, seed=seed)
                results[kind] = to_uint8(data.to_array(restored))
            paths = {"clean": f"{folder.name}/{name}_clean.png"}
            for kind, result in results.items():
                path = folder / f"{name}_{noise}{level}_{kind}.png"
                _write(result, path)
                paths[kind] = f"{folder.name}/{path.name}"
            values = {kind: (psnr(result, image), ssim(result, image)) for kind, result in results.items()}
            scores.append(values)
            figures.append(Figure(image=name, paths=paths, psnr={kind: value[0] for kind, value in values.items()}))
            bar.update()
        comparisons.append(
            Comparison(
                noise=noise,
                level=level,
                in_domain=(noise, level) == IN_DOMAIN,
                psnr={kind: float(np.mean([score[kind][0] for score in scores])) for kind in scores[0]},
                ssim={kind: float(np.mean([score[kind][1] for score in scores])) for kind in scores[0]},
                figures=figures,
            )
        )
    bar.close()
    return comparisons


def _complete(network: MaskedSwinIR, crops: dict[str, np.ndarray], folder: Path, seed: int) -> list[Completion]:
    """Mask-and-complete: what training shows to the masked network, and what it makes of it."""
    completions = []
    for index, (name, image) in enumerate(crops.items()):
        generator = data.generator(seed, index, data.VALIDATION_STREAM)
        noisy = data.to_tensor(add_noise(image.astype(np.float32) / 255, *IN_DOMAIN, generator))[None]
        key = MaskKey.make(seed, draw=index)
        masked = network.mask_input(noisy, key)
        with torch.no_grad():
            completed = network(masked, key=key)
        shown = to_uint8(data.to_array(masked[0]))  # the mask value, below 0, shows as black
        paths = {"input": f"{name}_completion_input.png", "output": f"{name}_completion_output.png"}
        _write(shown, folder / paths["input"])
        _write(data.to_array(completed[0]), folder / paths["output"])
        hidden = (masked == network.config.input_mask_value).all(dim=1).float().mean().item()
        completions.append(
            Completion(
                image=name,
                hidden=hidden,
                psnr=psnr(data.to_array(completed[0]), image),
                paths={"clean": f"{folder.name}/{name}_clean.png"}
                | {kind: f"{folder.name}/{path}" for kind, path in paths.items()},
            )
        )
    return completions


def _write(image: np.ndarray, path: Path) -> None:
    PIL.Image.fromarray(to_uint8(image)).save(path)
