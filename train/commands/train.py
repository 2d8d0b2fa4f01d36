"""`masked-swin train`: train a network, or go on with the run in the output folder."""

from collections.abc import Sequence

from masked_swin.train import distributed
from masked_swin.train.arguments import parse_config
from masked_swin.train.loop import Trainer
from masked_swin.train.messages import note_kernels, say
from masked_swin.train.parser import UsageError
from masked_swin.train.run_folder import WEIGHTS_FILE

_EXIT_CODES = {"interrupted": 130, "terminated": 143}


def run(arguments: Sequence[str]) -> int:
    """Train as configured; return the exit code."""
    try:
        config = parse_config(arguments)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with distributed.process_group(config.device):
        trainer = Trainer(config)
        if trainer.writes:
            note_kernels(trainer.device, config.precision)
            for message in trainer.messages:
                say(message)
        ending = trainer.run()
    if trainer.writes:
        go_on = "" if ending == "finished" else "; the same command goes on from there"
        say(f"{ending} at step {trainer.step}, saved{go_on}")
        print(trainer.folder / WEIGHTS_FILE)
    return _EXIT_CODES.get(ending, 0)
