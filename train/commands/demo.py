"""`masked-swin demo`: two small networks trained on Gaussian noise only, compared on noises neither has seen."""

import dataclasses
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig, denoise
from masked_swin.train.commands.report import Comparison, Completion, Figure, Report, Training, write_report
from masked_swin.train.config import TrainConfig
from masked_swin.train.data import NOISES, add_noise, builtin_images, to_array, to_tensor, to_uint8
from masked_swin.train.loop import Trainer
from masked_swin.train.metrics import psnr, ssim
from masked_swin.train.parser import Parser
from masked_swin.train.progress import progress_bar
from masked_swin.train.run_folder import WEIGHTS_FILE, RunFolder
from masked_swin.train.sampler import VALIDATION_STREAM, generator

# The published architecture, smaller, and with one convolution at the end of a group: the bottleneck of "3conv" slows
# the first minute of training (at 32 channels, 600 steps: 29.3 against 30.7 dB). In the same time 24 channels train 1.5
# times the steps of 32; they end equal without masks and higher with them.
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


def run(arguments: Sequence[str]) -> int:
    """Run the demo and print the path of its report; return the exit code."""
    parser = Parser("demo", "Train two small networks on built-in images, compare them on unseen noises.")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the report, images, checkpoints")
    parser.add_argument("--seconds", type=PositiveFloat, default=80.0, help="training time of each network")
    parser.add_argument("--steps", type=PositiveInt | None, default=None, help="exact number of steps instead")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="seed of weights, patches, noises and masks")
    parser.add_argument("--threads", type=PositiveInt | None, default=None, help="torch's threads; none: the fastest")
    options = parser.parse(arguments)
    # The parser's restricted types are subclasses of numbers, which YAML does not write: plain ones from here on.
    steps, threads = (None if number is None else int(number) for number in (options.steps, options.threads))
    path = run_demo(
        options.output, seconds=float(options.seconds), steps=steps, threads=threads, seed=int(options.seed)
    )
    print(path)
    return 0


def run_demo(
    output: Path, *, seconds: float = 80.0, steps: int | None = None, threads: int | None = None, seed: int = 0
) -> Path:
    """Train the unmasked twin, then the masked network from its weights; compare them; write the report.

    Each network trains for at most `seconds`. A few timed steps set the numbers of threads and steps, the same for
    both, so they vary with the machine; `steps` and `threads` fix them instead. All else is a function of the seed.

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
    pairs = zip(CROPS.items(), builtin_images(tuple(CROPS)).images, strict=True)
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
    print(f"{name}: {steps} steps, CPU threads: {torch.get_num_threads()}{limit}", flush=True)
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
    assert isinstance(trainer.average, MaskedSwinIR)
    return trainer.average, training


def _useful_threads(config: TrainConfig) -> int:
    """Return the number of threads that trains fastest: on a busy machine two can be several times slower than one."""
    available = torch.get_num_threads()
    times = {}
    for threads in sorted({min(2**power, available) for power in range(available.bit_length() + 1)}):
        torch.set_num_threads(threads)
        times[threads] = _step_time(config)
    return min(times, key=lambda threads: times[threads])


def _step_time(config: TrainConfig, trials: int = 10) -> float:
    """Return the median time of a step in seconds, on a trainer that is thrown away."""
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
    bar = progress_bar(total=(1 + len(UNSEEN)) * len(crops), description="denoise", unit="image")
    for name, image in crops.items():
        _write(image, folder / f"{name}_clean.png")
    for noise, level in (IN_DOMAIN, *UNSEEN):
        figures, scores = [], []
        for index, (name, image) in enumerate(crops.items()):
            random = generator(seed, index, VALIDATION_STREAM)
            noisy = to_uint8(add_noise(image.astype(np.float32) / 255, noise, level, random))
            results = {"noisy": noisy}
            for kind, network in networks.items():
                restored = denoise(network, to_tensor(noisy), average=4, seed=seed)
                results[kind] = to_uint8(to_array(restored))
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
    """Show the masked network a masked image, as in training, and write what it completes."""
    completions = []
    for index, (name, image) in enumerate(crops.items()):
        random = generator(seed, index, VALIDATION_STREAM)
        noisy = to_tensor(add_noise(image.astype(np.float32) / 255, *IN_DOMAIN, random))[None]
        key = MaskKey.make(seed, draw=index)
        masked = network.mask_input(noisy, key)
        with torch.no_grad():
            completed = network(masked, key=key)
        shown = to_uint8(to_array(masked[0]))  # the mask value, below 0, shows as black
        paths = {"input": f"{name}_completion_input.png", "output": f"{name}_completion_output.png"}
        _write(shown, folder / paths["input"])
        _write(to_array(completed[0]), folder / paths["output"])
        hidden = (masked == network.config.input_mask_value).all(dim=1).float().mean().item()
        completions.append(
            Completion(
                image=name,
                hidden=hidden,
                psnr=psnr(to_array(completed[0]), image),
                paths={"clean": f"{folder.name}/{name}_clean.png"}
                | {kind: f"{folder.name}/{path}" for kind, path in paths.items()},
            )
        )
    return completions


def _write(image: np.ndarray, path: Path) -> None:
    PIL.Image.fromarray(to_uint8(image)).save(path)
