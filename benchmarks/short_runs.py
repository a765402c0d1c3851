"""What `ablation.py` and `equal_terms.py` share: short trainings from one prior, and their scores.

Networks are those of `hub_configs/natural-x4-cvdvae`: its prior, with the encoder, is where every run starts, and its
LR encoder's configuration is that of the LR networks. A run that is complete in the output folder is not repeated.
"""

import argparse
import json
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hvae_sr.files import write_atomically  # noqa: E402

SOURCE = ROOT / "hub_configs" / "natural-x4-cvdvae"
_ENCODER_ONLY = ("_class_name", "_diffusers_version", "max_deviation", "decoder_bottleneck_multiple")
TEMPERATURES = (0.2, 0.8, 1.0)
MAX_LOG_SIGMA = 2.5
"""Bound of the priors' log-scales when the runs are sampled, that of `natural-x4`: without it, the streams of trained
decoders ran away on some images at t = 0.8 and 1, to samples that are not numbers."""
BLOCKS = "16x4,16d2,8x2"
"""Of the conditioners, a third of the LR encoder's at y's resolution: with the decoder, which is trained too, they have
as many parameters as the LR encoder with its heads."""


def options(description: str | None, updates: int) -> argparse.ArgumentParser:
    """The options of both commands."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", nargs="+", required=True, metavar="DIR", help="folders to train on")
    parser.add_argument("--benchmarks", required=True, metavar="DIR", help="folder of the folders Set5, BSD100, ...")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="of networks, reports and tables")
    parser.add_argument("--updates", type=int, default=updates, help=f"of each run (default {updates})")
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="where only new networks are trained")
    # What is pretrained is harmed by steps that new networks need to get anywhere in a short run.
    parser.add_argument("--pretrained_learning_rate", type=float, default=5e-4, help="where pretrained ones are too")
    parser.add_argument("--lr_warmup_steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_samples", type=int, default=8, help="of each image that is scored (default 8)")
    parser.add_argument(
        "--document", metavar="FILE", help="Markdown whose tables between this command's marks to renew"
    )
    return parser


def publish(given: argparse.Namespace, command: str, text: str) -> None:
    """Prints tables and writes them to COMMAND.md in `output_dir` and, where asked for, into a document.

    There they take the place of what stands between the lines `<!-- COMMAND -->` and `<!-- end of COMMAND -->`, below a
    line that says how the command was called.

    Raises:
        ValueError: the document has no such lines.
    """
    print(text)
    (Path(given.output_dir) / f"{command}.md").write_text(text)
    if given.document is None:
        return
    document = Path(given.document)
    start, end = f"<!-- {command} -->\n", f"<!-- end of {command} -->\n"
    before, opened, rest = document.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"`document`: {document} lacks the lines {start.strip()} and {end.strip()}")
    folders = {
        "benchmarks": "BENCHMARKS",
        "output_dir": "OUT",
        "photographs": " ".join(["DIR"] * len(given.photographs)),
    }
    called = {key: folders.get(key, value) for key, value in vars(given).items() if key != "document"}
    how = f"python benchmarks/{command}.py " + " ".join(f"--{key} {value}" for key, value in called.items())
    write_atomically(f"{before}{start}```\n{how}\n```\n\n{text}{end}{after}", document)


def conditioner_config(**changes: Any) -> dict[str, Any]:
    """The configuration of an `LRConditioner` with the body of the bundled LR encoder."""
    config = json.loads((SOURCE / "lr_encoder" / "config.json").read_text())
    return {key: value for key, value in config.items() if key not in _ENCODER_ONLY} | {"blocks": BLOCKS} | changes


def train_final(given: argparse.Namespace, decoder: str) -> dict[str, float]:
    """The thesis' final model, which both commands train: `decoder` is "trainable" or "fixed"."""
    return train(given, f"final-{decoder}", "vdvae-sr", conditioner_config(), **fixed(decoder))


def fixed(decoder: str) -> dict[str, Any]:
    """Options of stage vdvae-sr for a "trainable" or "fixed" decoder; the encoder of x is fixed, as in the thesis."""
    return {"train_encoder": False, "train_decoder": decoder == "trainable"}


def train(
    given: argparse.Namespace, name: str, stage: str, lr_config: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, float]:
    """Trains by `hvae_sr.training.Trainer`, unless it is done; returns the run's figures.

    A run that was stopped goes on from its checkpoint.

    Args:
        given: the command's options.
        name: of the run's folder in `output_dir`.
        stage: of `train.py`.
        lr_config: of the LR network, or None where `more` has pretrained_lr_encoder.
        more: further options of `train.py`.

    Raises:
        ValueError: the folder is of a run with other options, or from other weights.
    """
    from accelerate.state import AcceleratorState, GradientState

    from hvae_sr.training import Trainer, parse_arguments

    folder = Path(given.output_dir) / name
    figures, kept, spent = (folder / file for file in ("figures.json", "options.json", "processor_seconds.txt"))
    trains_pretrained = stage == "energy-score" or more.get("train_decoder", stage == "vdvae-sr")
    values: dict[str, Any] = {
        "stage": stage, "pretrained_vdvae": SOURCE / "vdvae", "resolution": 32,
        "train_batch_size": given.train_batch_size, "max_train_steps": given.updates, "seed": given.seed,
        "learning_rate": given.pretrained_learning_rate if trains_pretrained else given.learning_rate,
        "lr_warmup_steps": given.lr_warmup_steps, "ema_decay": 0.95, "mixed_precision": "bf16",
        "logging_steps": 10, "checkpointing_steps": 10**6, **more,
    }  # fmt: skip
    run = {key: _identity(value) for key, value in values.items()} | {"lr_config": dict(lr_config or {})}
    run |= {"photographs": [Path(folder).name for folder in given.photographs]}
    if folder.exists():  # done, or stopped: to go on with other options would be neither run
        before = json.loads(kept.read_text()) if kept.is_file() else {}
        others = sorted(key for key in run if before.get(key) != run[key])
        if others:
            raise ValueError(f"`output_dir`: {folder} is of a run with other {', '.join(others)}; take another folder")
    write_atomically(json.dumps(run, indent=2), kept)
    if figures.is_file():
        return dict(json.loads(figures.read_text()))
    if lr_config is not None:
        values["lr_config"] = folder / "lr_config.json"
        values["lr_config"].write_text(json.dumps(lr_config, indent=2))
    values |= {"output_dir": folder, "resume_from_checkpoint": "latest"}
    arguments = [f"--{key}={value}" for key, value in values.items()]
    trainer = Trainer(parse_arguments([*arguments, "--train_data_dir", *given.photographs]))
    earlier, start = float(spent.read_text()) if spent.is_file() else 0.0, time.process_time()
    try:
        trainer.train()
    finally:
        seconds = earlier + time.process_time() - start
        spent.write_text(str(seconds))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    result = {key: value for line in lines for key, value in line.items() if isinstance(value, int | float)}
    result |= {"processor_seconds": seconds, "crops": given.updates * given.train_batch_size}
    result["trained"] = sum(parameter.numel() for parameter in trainer.trainable)
    bound(folder)
    write_atomically(json.dumps(result, indent=2), figures)
    return result


def _identity(value: Any) -> Any:
    """An option as it is compared: the checksum of the weights, where it is a folder of a network."""
    if not isinstance(value, Path):
        return value
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(value.glob("*.safetensors"))))


def bound(folder: Path) -> None:
    """Bounds the log-scales of the prior in a run's folder; training saw no bound."""
    from hvae_sr import VDVAE

    vdvae = VDVAE.from_pretrained(folder / "vdvae")
    if vdvae.config.max_log_sigma is None:
        vdvae.register_to_config(max_log_sigma=MAX_LOG_SIGMA)
        vdvae.save_config(folder / "vdvae")


def score(
    given: argparse.Namespace, name: str, data: str, size: int, num_images: int, num_samples: int
) -> list[dict[str, Any]]:
    """Rows of `hvae-sr evaluate` (thesis protocol, t = 0.2, 0.8, 1) for a run's pipeline, kept in the run's folder."""
    from hvae_sr import SuperResolutionPipeline
    from hvae_sr.evaluation import evaluate, markdown_table, read_report, write_report

    path = Path(given.output_dir) / name / "scores" / f"{data}-{size}-{num_images}x{num_samples}.json"
    if not path.is_file():
        pipeline = SuperResolutionPipeline.from_pretrained(Path(given.output_dir) / name)
        report = evaluate(
            pipeline, Path(given.benchmarks) / data, "thesis", size=size, temperatures=TEMPERATURES,
            num_images=num_images, num_samples=num_samples, name=name, report_path=path,
        )  # fmt: skip
        write_report(report, path)
    report = read_report(path)
    path.with_suffix(".md").write_text(markdown_table(report))
    return list(report["rows"])


def sampler_parameters(given: argparse.Namespace, name: str) -> int:
    """Parameters that sampling needs: without the encoder of x and the posterior heads."""
    from hvae_sr import SuperResolutionPipeline

    pipeline = SuperResolutionPipeline.from_pretrained(Path(given.output_dir) / name, load_encoder=False)
    return sum(p.numel() for network in (pipeline.vdvae, pipeline.lr_encoder) for p in network.parameters())


def line(cells: Sequence[object]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Rows of a report under their names."""
    return {str(row["name"]): row for row in rows}
