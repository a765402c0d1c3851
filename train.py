"""Trains the networks of hvae-sr: `accelerate launch train.py --stage STAGE ...`; see docs/training.md."""

import logging
import sys

from hvae_sr.training import Interrupted, Trainer, describe, parse_arguments


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 options, data or files that do not fit, or a run that diverged, 128 + signal stopped with
    a checkpoint."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # or seven lines for each checkpoint
    try:
        config = parse_arguments(arguments)
        if config.dry_run:
            print(describe(config))
        else:
            Trainer(config).train()
    except (ValueError, OSError) as error:
        print(f"train.py: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"train.py: {stop}; go on with --resume_from_checkpoint latest", file=sys.stderr)
        return 128 + stop.signum
    return 0


if __name__ == "__main__":
    sys.exit(main())
