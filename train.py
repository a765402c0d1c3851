"""Trains the networks of hvae-sr: `accelerate launch train.py --stage vdvae|lr-encoder|vdvae-sr ...`."""

import logging
import sys

from hvae_sr.training import Trainer, parse_arguments


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        Trainer(parse_arguments(arguments)).train()
    except ValueError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
