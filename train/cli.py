"""The command line: masked-swin train | import-options | denoise | noise | evaluate | doctor | demo.

Exit codes: 0 done, 1 failed (of several files: some failed), 2 wrong arguments or configuration, 130 interrupted
(Ctrl-C), 143 terminated (SIGTERM).
"""

import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from masked_swin import __version__
from masked_swin.inference import AttentionMask
from masked_swin.train import distributed
from masked_swin.train.commands import doctor, evaluate, noise
from masked_swin.train.commands.demo import run_demo
from masked_swin.train.commands.denoise import DenoiseOptions, denoise_files, load_weights, weights_path
from masked_swin.train.config import TrainConfig, apply_preset, train_config, train_parser
from masked_swin.train.loop import Trainer
from masked_swin.train.messages import plain
from masked_swin.train.parser import Parser
from masked_swin.train.perceptual import load_lpips
from masked_swin.train.public_options import import_options
from masked_swin.train.run_folder import WEIGHTS_FILE

MAX_MEGAPIXELS = 250
SPECS = "noises and levels, as gaussian:1,mixture:4; a name alone is levels 1 to 4; all"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. `--help` and `--version` leave through SystemExit, as in argparse."""
    arguments = [_underscored(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    if arguments[:1] == ["doctor"]:
        return doctor.main(arguments[1:])  # its own parser: it runs without ours, too
    training = train_parser()
    parser = Parser(
        prog="masked-swin",
        description="Denoisers that work on noises they have never seen.",
        version=__version__,
        exit_on_error=False,
    )
    commands = parser.add_subcommands(title="commands")
    for name, subparser, summary in (
        ("train", training, "train a network; resumes a run found in its output folder"),
        ("import-options", _import_parser(), "translate an option file of the public code"),
        ("denoise", _denoise_parser(), "denoise a file or a folder of images"),
        ("noise", _noise_parser(), "seeded noisy copies of a folder of images, with a manifest"),
        ("evaluate", _evaluate_parser(), "PSNR, SSIM and LPIPS of results, or of a network on noisy images"),
        ("doctor", Parser(), "what runs on this machine, why the rest does not, and a self-test"),
        ("demo", _demo_parser(), "train two small networks and write a report"),
    ):
        commands.add_subcommand(name, subparser, help=summary)
    try:
        parsed = parser.parse_args(arguments)
        if parsed.subcommand == "train":
            # Parsed twice: the preset, given by flag or file, is what the network fields start from.
            try:
                apply_preset(training, parsed.train.preset)
                config = train_config(training, parser.parse_args(arguments).train)
            except ValueError as error:
                return _fail(error, code=2)
            return _train(config)
        commands_by_name = {
            "import-options": _import,
            "denoise": _denoise,
            "noise": _noise,
            "evaluate": _evaluate,
            "demo": _demo,
        }
        return commands_by_name[parsed.subcommand](parsed.get(parsed.subcommand))
    except ArgumentError as error:
        command = f" {arguments[0]}" if arguments and arguments[0] in commands.choices else ""
        print(f"error: {plain(str(error))}\ntry: masked-swin{command} --help", file=sys.stderr)
        return 2
    except (ValueError, OSError, FloatingPointError) as error:
        return _fail(error)


def _underscored(argument: str) -> str:
    """`--attention-mask=off` as `--attention_mask=off`: flags are spelled like configuration fields, or with dashes."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _import_parser() -> Parser:
    parser = Parser(description="Translate an option file of the public training code to one for `train --config`.")
    parser.add_argument("options", type=Path, help="JSON file, // comments allowed")
    parser.add_argument("--output", type=Path | None, default=None, help="YAML file to write; none: print it")
    return parser


def _denoise_parser() -> Parser:
    parser = Parser(
        description="Denoise images. Names, formats, bit depth and metadata are kept; inputs are never overwritten. An "
        "interrupted run goes on where it stopped when it is started again."
    )
    parser.add_argument("input", type=Path, help="an image file, or a folder (with those below it)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--model", type=str, required=True, help="checkpoint, .pth or .safetensors, or the folder of a training run"
    )
    _add_denoise_options(parser, "average")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    parser.add_argument(
        "--max_megapixels", type=PositiveInt, default=MAX_MEGAPIXELS, help="refuse larger images (decompression bombs)"
    )
    return parser


def _add_denoise_options(parser: Parser, attention_mask: AttentionMask | None) -> None:
    parser.add_argument(
        "--attention_mask",
        type=AttentionMask if attention_mask else AttentionMask | None,
        default=attention_mask,
        help='"average" of several masks, one "random" mask as published, or "off"',
    )
    parser.add_argument("--average", type=PositiveInt, default=4, help="number of masks to average over")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the masks")
    parser.add_argument(
        "--tile",
        type=PositiveInt | None,
        default=None,
        help="side of the tiles in pixels, a multiple of the window; none: the largest up to 1024 that fits into half "
        "of the free memory",
    )
    parser.add_argument("--overlap", type=NonNegativeInt | None, default=None, help="of the tiles in pixels; none: 64")
    parser.add_argument("--threads", type=PositiveInt | None, default=None, help="of torch; none: its own choice")


def _noise_parser() -> Parser:
    parser = Parser(
        description="Write noisy copies of images as 8-bit PNG, and a manifest. The same seed gives the same bytes; "
        "nothing is overwritten."
    )
    parser.add_argument("input", type=Path, help="a folder of clean images, or one; with --check: of noisy copies")
    parser.add_argument("--output", type=Path | None, default=None, help="folder of the copies")
    parser.add_argument("--noise", type=str, default="all", help=SPECS)
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the noise")
    parser.add_argument("--workers", type=PositiveInt | None, default=None, help="threads; none: one for each core")
    parser.add_argument("--check", action="store_true", help="compare the folder `input` with its manifest instead")
    return parser


def _evaluate_parser() -> Parser:
    parser = Parser(
        description="Score images against clean ones: results, or noisy images and what a network makes of them."
    )
    parser.add_argument("clean", type=Path, help="folder of the clean images")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="folders of results with the same names")
    parser.add_argument("--noisy", type=Path, nargs="+", default=[], help="folders of noisy images with the same names")
    parser.add_argument("--noise", type=str | None, default=None, help=f"noise to add to the clean images: {SPECS}")
    parser.add_argument("--noise_seed", type=NonNegativeInt, default=0, help="of that noise")
    parser.add_argument("--model", type=str | None, default=None, help="checkpoint, or the folder of a training run")
    parser.add_argument(
        "--protocol",
        type=evaluate.Protocol,
        default="default",
        help='"default" denoises as `denoise` does; "public" as the test code of the paper: padded by its rule, in one '
        "piece, one random mask. Both measure 8-bit images less a border of 1 pixel, in RGB and in Y",
    )
    _add_denoise_options(parser, None)
    parser.add_argument("--output", type=Path | None, default=None, help="folder for images.csv and summary.json")
    parser.add_argument("--overwrite", action="store_true", help="replace an evaluation in the output folder")
    return parser


def _demo_parser() -> Parser:
    parser = Parser(description="Train two small networks on built-in images, compare them on unseen noises.")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the report, images, checkpoints")
    parser.add_argument("--seconds", type=PositiveFloat, default=80.0, help="training time of each network")
    parser.add_argument("--steps", type=PositiveInt | None, default=None, help="exact number of steps instead")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of weights, patches, noises and masks")
    parser.add_argument("--threads", type=PositiveInt | None, default=None, help="of torch; none: the fastest here")
    return parser


def _train(config: TrainConfig) -> int:
    with distributed.process_group(config.device):
        trainer = Trainer(config)
        if trainer.writes:
            for message in trainer.messages:
                print(message, file=sys.stderr)
        ending = trainer.run()
    if trainer.writes:
        go_on = "" if ending == "finished" else "; the same command goes on from there"
        print(f"{ending} at step {trainer.step}, saved{go_on}", file=sys.stderr)
        print(trainer.folder / WEIGHTS_FILE)
    return {"interrupted": 130, "terminated": 143}.get(ending, 0)


def _import(options: Namespace) -> int:
    text, notes = import_options(options.options)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if options.output is None:
        print(text, end="")
        return 0
    with open(options.output, "x") as file:
        file.write(text)
    print(f"masked-swin train --config {options.output}")
    return 0


def _denoise(options: Namespace) -> int:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    PIL.Image.MAX_IMAGE_PIXELS = options.max_megapixels * 10**6 // 2  # Pillow refuses twice as many...
    warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # ...and warns from here on
    path = weights_path(options.model)
    print(f"weights of {path}", file=sys.stderr)
    outcome = denoise_files(
        load_weights(options.model),
        options.input,
        options.output,
        _denoise_options(options, options.attention_mask),
        overwrite=options.overwrite,
        say=lambda message: print(message, file=sys.stderr),
    )
    _tell(note=outcome.notes, skipped=outcome.skipped, failed=outcome.failures)
    done = f", {len(outcome.done)} were there" if outcome.done else ""
    skipped = f", {len(outcome.skipped)} skipped" if outcome.skipped else ""
    print(f"{len(outcome.written)} images written to {options.output}{done}{skipped}, {len(outcome.failures)} failed")
    if outcome.not_tried:
        print(f"the disk is full: {outcome.not_tried} not tried; make room, the same command goes on", file=sys.stderr)
    return 1 if outcome.failures or not (outcome.written or outcome.done) else 0


def _denoise_options(options: Namespace, attention_mask: AttentionMask) -> DenoiseOptions:
    tile, overlap = (None if number is None else int(number) for number in (options.tile, options.overlap))
    return DenoiseOptions(attention_mask, int(options.average), int(options.seed), tile, overlap)


def _noise(options: Namespace) -> int:
    if options.check:
        right, problems = noise.check_noisy(options.input)
        _tell(wrong=problems)
        print(f"{right} copies as the manifest says, {len(problems)} wrong")
        return 1 if problems else 0
    if options.output is None:
        return _fail(ValueError("missing: --output, the folder of the copies"), code=2)
    specs = noise.parse_specs(options.noise)
    outcome = noise.write_noisy(options.input, options.output, specs, seed=int(options.seed), workers=options.workers)
    _tell(note=outcome.notes, skipped=outcome.skipped, failed=outcome.failures)
    print(f"{len(outcome.entries)} copies in {options.output}, {len(outcome.failures)} failed")
    return 1 if outcome.failures else 0


def _evaluate(options: Namespace) -> int:
    if not (options.results or options.noisy or options.noise):
        return _fail(ValueError("nothing to score: give --results, --noisy or --noise"), code=2)
    if options.results and (options.noisy or options.noise or options.model):
        return _fail(ValueError("--results are finished images: leave out --noisy, --noise and --model"), code=2)
    if options.output is not None:
        evaluate.check_output(options.output, options.overwrite)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    mask: AttentionMask = options.attention_mask or ("random" if options.protocol == "public" else "average")
    denoising = _denoise_options(options, mask)
    lpips = load_lpips()
    if lpips.why_not is not None:
        print(f"note: no LPIPS: {lpips.why_not}", file=sys.stderr)
    model, seed = None, int(options.noise_seed)
    if options.results:
        scores = evaluate.evaluate_results(options.clean, options.results, protocol=options.protocol, lpips=lpips)
    else:
        model = load_weights(options.model) if options.model else None
        specs = noise.parse_specs(options.noise) if options.noise else []
        scores = evaluate.evaluate_network(
            *(model, options.clean, options.noisy, specs),
            seed=seed,
            options=denoising,
            protocol=options.protocol,
            lpips=lpips,
        )
    _tell(note=scores.notes, failed=scores.failures)
    if options.output is not None:
        settings = evaluate.settings_of(model, denoising, options.protocol, seed)
        evaluate.write_evaluation(scores, options.output, settings, overwrite=options.overwrite)
    print(evaluate.table(scores.means()))
    return 1 if scores.failures else 0


def _tell(**kinds: list[str]) -> None:
    """The lines, each behind its kind."""
    for kind, lines in kinds.items():
        for line in lines:
            print(f"{kind}: {line}", file=sys.stderr)


def _demo(options: Namespace) -> int:
    # The parser's restricted types are subclasses of numbers, which YAML does not write: plain ones from here on.
    steps, threads = (None if number is None else int(number) for number in (options.steps, options.threads))
    path = run_demo(
        options.output, seconds=float(options.seconds), steps=steps, threads=threads, seed=int(options.seed)
    )
    print(path)
    return 0


def _fail(error: Exception, code: int = 1) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
