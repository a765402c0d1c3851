"""What stands in for large things in tests."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from hvae_sr.evaluation import evaluate
from hvae_sr.operators import Downsampling


class NoisyBicubic:
    """The interface of a pipeline: bicubic interpolation plus noise, sample j from the seed `seed + j`."""

    def __init__(self, kernel: str = "bicubic", noise: float = 0.03):
        self.operator, self.noise, self.calls = Downsampling(4, kernel=kernel), noise, []
        self.config = {"noise": noise, "_name_or_path": "somewhere"}

    def set_progress_bar_config(self, **options: Any) -> None:
        self.progress_bar = options

    def __call__(
        self, images: Any, temperature: float, num_samples: int, seed: int, output_type: str = "pil", **options: Any
    ) -> SimpleNamespace:
        self.calls.append({"images": len(images), "num_samples": num_samples, "seed": seed, **options})
        assert output_type == "np" and options["enforce_consistency"] is False
        outputs = []
        for image in images:
            up = np.asarray(image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)) / 255
            for j in range(num_samples):
                noise = np.random.default_rng(seed + j).normal(0, self.noise * temperature, up.shape)
                outputs.append(np.clip(up + noise, 0, 1).astype(np.float32))
        return SimpleNamespace(images=outputs)


def photo_folder(path: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    """A folder of smooth random images, `{name: (width, height)}`."""
    rng = np.random.default_rng(0)
    path.mkdir()
    for name, size in sizes.items():
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path / f"{name}.png")
    return path


def run(folder: Any, pipeline: Any = None, **options: Any) -> dict[str, Any]:
    """The report of an evaluation at S = 32, of three samples at t = 0.8, unless `options` say else."""
    defaults = {"size": 32, "temperatures": (0.8,), "num_samples": 3, "progress_bar": False}
    return evaluate(pipeline, folder, **(defaults | options))


def by_name(report: dict[str, Any]) -> dict[str, Any]:
    """The rows of a report."""
    return {row["name"]: row for row in report["rows"]}


def random_weights(trunk: str) -> dict[str, torch.Tensor]:
    """Weights of LPIPS in the shapes of "alexnet" or "vgg16"."""
    generator = torch.Generator().manual_seed(0)
    sides = dict(zip((0, 3, 6, 8, 10), (11, 5, 3, 3, 3), strict=True))
    taps = widths = [64, 192, 384, 256, 256]
    if trunk == "vgg16":
        sides = dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), 3)
        widths, taps = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6, [64, 128, 256, 512, 512]
    weights = {f"lin{i}.weight": torch.rand(1, n, 1, 1, generator=generator) for i, n in enumerate(taps)}
    for (place, side), into, out in zip(sides.items(), [3, *widths], widths, strict=False):
        spread = (2 / (into * side**2)) ** 0.5
        weights[f"features.{place}.weight"] = spread * torch.randn(out, into, side, side, generator=generator)
        weights[f"features.{place}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return weights


def write_ncnn(
    state: dict[str, torch.Tensor], layers: list[tuple[str, str]], folder: Path, half: bool = True, end: str = ""
) -> Path:
    """A `.bin` and its `.param` of layers (kind, name) in ncnn's format; `end` are lines of layers without weights."""
    lines, data = ["Input input 0 1 data"], b""
    for kind, name in layers:
        if kind == "MemoryData":
            lines.append(f"MemoryData {name} 0 1 a 0=1 1=1 2=3")
            data += state[name].numpy().tobytes()
            continue
        weight = state[f"{name}.weight"]
        if kind == "PReLU":
            lines.append(f"PReLU {name} 1 1 a b 0={len(weight)}")
            data += weight.numpy().tobytes()
            continue
        lines.append(f"Convolution {name} 1 1 a b 0={len(weight)} 1={weight.shape[2]} 4=1 5=1 6={weight.numel()}")
        stored = weight.half().numpy().tobytes() if half else weight.numpy().tobytes()
        tag = 0x01306B47 if half else 0
        data += (
            tag.to_bytes(4, "little") + stored + b"\0" * (-len(stored) % 4) + state[f"{name}.bias"].numpy().tobytes()
        )
    lines += ["Interp up 1 1 a b 0=1 1=4.0", "BinaryOp add 2 1 a b c", end]
    (folder / "x.param").write_text("\n".join(["7767517", f"{len(lines)} 9", *lines]))
    (folder / "x.bin").write_bytes(data)
    return folder / "x.bin"


def levels(batch_size: int, side: int, seed: int) -> torch.Tensor:
    """Random images `[B, 3, side, side]` of 8 bits on [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch_size, 3, side, side), generator=generator) / 127.5 - 1


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A random image of 8 bits."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def objective_of(folder: Path, **options: Any) -> tuple[Any, Any]:
    """The objective of a stage, for the prior and the LR network in a folder, as the trainer checks it; its options."""
    from hvae_sr.training import parse_arguments
    from hvae_sr.training.networks import build_objective, check_objective

    values = {
        "train_data_dir": folder, "output_dir": folder / "out", "resolution": 16, "pretrained_vdvae": folder / "prior",
        "lr_config": folder / "lr.json", **options,
    }  # fmt: skip
    config = parse_arguments([f"--{key}={value}" for key, value in values.items()])
    objective = build_objective(config)
    check_objective(objective, config, torch.device("cpu"))
    return objective, config


def write_table(path: Path, images: Iterable[tuple[str | None, bytes]], **columns: list[int]) -> None:
    """A parquet file of files of images and their names, and other columns."""
    import datasets

    features = {"image": datasets.Image(), **dict.fromkeys(columns, datasets.Value("int64"))}
    table = {"image": [{"bytes": data, "path": name} for name, data in images], **columns}
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(path)
