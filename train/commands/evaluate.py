"""`masked-swin evaluate`: PSNR, SSIM and LPIPS of folders of results, or of what a network makes of noisy images."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt

from masked_swin.denoiser import Denoiser
from masked_swin.train import distributed
from masked_swin.train.commands.denoise_options import DenoiseOptions, add_denoise_options
from masked_swin.train.commands.noise import SPECS_HELP, named_images, parse_specs
from masked_swin.train.commands.scores import check_output, plain, table, write_evaluation
from masked_swin.train.commands.scoring import evaluate_network, evaluate_results
from masked_swin.train.messages import note_kernels, report, say
from masked_swin.train.parser import Parser, UsageError
from masked_swin.train.perceptual import Lpips, load_lpips
from masked_swin.train.protocols import PROTOCOLS, ProtocolName, find_image_sets, select_noises
from masked_swin.train.weights import fingerprint, load_weights


def run(arguments: Sequence[str]) -> int:
    """Print the scores, and write them; return the exit code."""
    parser = Parser(
        "evaluate", "Score images against clean ones: results, or noisy images and what a network makes of them."
    )
    parser.add_argument(
        "clean",
        type=Path,
        nargs="+",
        help="folder of the clean images; with the protocols paper and clip, the folders of their image sets, or one "
        "that holds these",
    )
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="folders of results with the same names")
    parser.add_argument("--noisy", type=Path, nargs="+", default=[], help="folders of noisy images with the same names")
    parser.add_argument(
        "--noise",
        type=str | None,
        default=None,
        help=f"noise added to the clean images: {SPECS_HELP}. With the protocols paper and clip: some of their noises",
    )
    parser.add_argument("--noise_seed", type=NonNegativeInt, default=0, help="seed of that noise")
    parser.add_argument("--model", type=str | None, default=None, help="checkpoint, or the folder of a training run")
    parser.add_argument(
        "--protocol",
        type=ProtocolName,
        default="default",
        help='"default" denoises as `denoise` does; "public" as the test code of the paper: padded by its rule, in one '
        'piece, one random mask. Both measure 8-bit images less a border of 1 pixel, in RGB and in Y. "paper" is '
        '"public" with the noises of the paper. "clip" is the test script of CLIPDenoising: docs/protocols.md',
    )
    add_denoise_options(parser, None)
    parser.add_argument("--output", type=Path | None, default=None, help="folder for images.csv and summary.json")
    parser.add_argument("--overwrite", action="store_true", help="replace an evaluation in the output folder")
    parser.add_argument("--json", action="store_true", help="print the means as JSON")
    options = parser.parse(arguments)
    _check_usage(options)
    if options.output is not None:
        check_output(options.output, options.overwrite)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    name: ProtocolName = options.protocol
    protocol, seed = PROTOCOLS[name], int(options.noise_seed)
    sets: dict[str, Path] = {"": options.clean[0]}
    skipped: list[str] = []
    if protocol.noises:
        sets, skipped = find_image_sets(name, options.clean)
        specs = select_noises(name, options.noise)
    else:
        specs = parse_specs(options.noise) if options.noise else []
    targets = {image_set: named_images(folder) for image_set, folder in sets.items()}
    if protocol.noises:
        _note_sets(name, sets, skipped)
    device = distributed.device(options.device)
    denoising = DenoiseOptions.of(options, options.attention_mask or protocol.attention_mask, device)
    lpips = load_lpips() if "lpips" in protocol.measures else Lpips(None)
    if lpips.why_not is not None:
        say(f"note: no LPIPS: {lpips.why_not}")
    model = None
    if options.results:
        evaluation = evaluate_results(targets[""], options.results, protocol=protocol, lpips=lpips)
    else:
        note_kernels(device)
        model = load_weights(options.model).to(device) if options.model else None
        evaluation = evaluate_network(
            *(model, targets, options.noisy, specs), seed=seed, options=denoising, protocol=protocol, lpips=lpips
        )
    report(note=evaluation.notes, failed=evaluation.failures)
    about_sets = {"image_sets": list(sets), "skipped_sets": skipped} if protocol.noises else {}
    if options.output is not None:
        settings = settings_of(model, denoising, name, seed) | about_sets
        write_evaluation(evaluation, options.output, settings, overwrite=options.overwrite)
    if options.json:
        print(json.dumps({**about_sets, "means": plain(evaluation.means()), "failures": evaluation.failures}, indent=1))
    else:
        print(table(evaluation.means()))
    return 1 if evaluation.failures else 0


def _check_usage(options: Namespace) -> None:
    """Raise UsageError for arguments that do not go together."""
    name, protocol = options.protocol, PROTOCOLS[options.protocol]
    if protocol.padding is not None and not (options.tile is None and options.overlap is None):
        raise UsageError(f"protocol {name} gives whole images to the network: leave out --tile and --overlap")
    if protocol.noises:
        if options.results or options.noisy:
            raise UsageError(
                f"protocol {name} makes its own noisy images: leave out --results and --noisy, or take --protocol "
                "public, which scores such folders"
            )
        if options.noise_seed:
            raise UsageError(f"protocol {name} has noise of seed 0: leave out --noise-seed")
        return
    if len(options.clean) > 1:
        raise UsageError(f"expected one folder of clean images, got {len(options.clean)}; {_several()} take several")
    if not (options.results or options.noisy or options.noise):
        raise UsageError("nothing to score: give --results, --noisy or --noise")
    if options.results and (options.noisy or options.noise or options.model):
        raise UsageError("--results are finished images: leave out --noisy, --noise and --model")


def _several() -> str:
    return " and ".join(f"--protocol {name}" for name, protocol in PROTOCOLS.items() if protocol.noises)


def _note_sets(name: ProtocolName, sets: Iterable[str], skipped: Sequence[str]) -> None:
    others = [image_set for image_set in sets if image_set not in PROTOCOLS[name].image_sets]
    if others:
        say(f"note: {', '.join(others)}: no image set of protocol {name}; its scores compare with no published ones")
    if skipped:
        say(f"note: protocol {name} skips {', '.join(skipped)}: no such folder was given")


def settings_of(model: Denoiser | None, options: DenoiseOptions, protocol: ProtocolName, seed: int) -> dict[str, Any]:
    """Return the settings that determine the scores, for the summary."""
    network = None if model is None else {"sha256": fingerprint(model), **asdict(options)}
    return {"protocol": protocol, "noise_seed": seed, "network": network}
