"""The command line: masked-swin train | import-options | denoise | doctor | demo.

Exit codes: 0 done, 1 failed (for `denoise`: some file failed), 2 wrong arguments or configuration, 130 interrupted
(Ctrl-C), 143 terminated (SIGTERM).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from masked_swin.train import distributed
from masked_swin.train.config import TrainConfig, apply_preset, train_config, train_parser
from masked_swin.train.demo import run_demo
from masked_swin.train.denoising import AttentionMask, denoise_files, load_weights
from masked_swin.train.doctor import report
from masked_swin.train.loop import Trainer
from masked_swin.train.parser import Parser
from masked_swin.train.public_options import import_options
from masked_swin.train.run_folder import WEIGHTS_FILE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Wrong arguments leave through SystemExit(2), as in argparse."""
    arguments = [_underscored(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    training = train_parser()
    parser = Parser(prog="masked-swin", description="Denoisers that work on noises they have never seen.")
    commands = parser.add_subcommands(title="commands")
    commands.add_subcommand("train", training, help="train a network; resumes a run found in its output folder")
    commands.add_subcommand("import-options", _import_parser(), help="translate an option file of the public code")
    commands.add_subcommand("denoise", _denoise_parser(), help="denoise a file or a folder of images")
    commands.add_subcommand("doctor", ArgumentParser(), help="what runs on this machine, and why the rest does not")
    commands.add_subcommand("demo", _demo_parser(), help="train two small networks and write a report")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.subcommand == "train":
            # Parsed twice: the preset, given by flag or file, is what the network fields start from.
            try:
                apply_preset(training, parsed.train.preset)
                config = train_config(training, parser.parse_args(arguments).train)
            except ValueError as error:
                return _fail(error, code=2)
            return _train(config)
        run = {"import-options": _import, "denoise": _denoise, "doctor": _doctor, "demo": _demo}[parsed.subcommand]
        return run(parsed.get(parsed.subcommand))
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


def _denoise_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Denoise images; names and formats are kept, inputs are never overwritten.")
    parser.add_argument("input", type=Path, help="an image file, or a folder (with those below it)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", type=str, required=True, help="checkpoint, .pth or .safetensors")
    parser.add_argument(
        "--attention_mask",
        type=AttentionMask,
        default="average",
        help='"average" of several masks, one "random" mask as published, or "off"',
    )
    parser.add_argument("--average", type=PositiveInt, default=4, help="number of masks to average over")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the masks")
    parser.add_argument("--threads", type=PositiveInt | None, default=None, help="of torch; none: its own choice")
    return parser


def _demo_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Train two small networks on built-in images, compare them on unseen noises.")
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
    outcome = denoise_files(
        load_weights(options.model),
        options.input,
        options.output,
        attention_mask=options.attention_mask,
        average=options.average,
        seed=options.seed,
    )
    for note in outcome.notes:
        print(f"note: {note}", file=sys.stderr)
    for failure in outcome.failures:
        print(f"failed: {failure}", file=sys.stderr)
    print(f"{len(outcome.written)} images written to {options.output}, {len(outcome.failures)} files failed")
    return 1 if outcome.failures else 0


def _doctor(options: Namespace) -> int:
    print(report())
    return 0


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
