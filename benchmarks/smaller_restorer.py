"""A smaller Real-ESRGAN for `--pretrained_restorer`: some blocks left out, the others trained to give the same images.

python benchmarks/smaller_restorer.py REALESRGAN --train_data_dir DIR [DIR ...] --output_dir OUT
    [--leave_out 7 8 9 11 18] [--updates 200] [--learning_rate 3e-5]

REALESRGAN: the folder that `hvae-sr convert` makes of its weights. The blocks to leave out by default are those whose
absence changes its images least, one after the other. The rest learns, on random degradations, the images and the
features (their mean absolute error, 0.02 of their mean size) of the whole network, with its numbers rounded to float8
as a `Restorer` has them; gradients pass the rounding as they are. A line for every 20 updates has the PSNR between the
two networks' images.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, RandomSampler

from hvae_sr.baselines import RRDBNet
from hvae_sr.data import ImageFolder, degrade, load_degradation

BATCH, CROP, SEED, FEATURE_WEIGHT, WARMUP, MAX_NORM = 6, 128, 7, 0.02, 10, 0.05


class Float8(nn.Module):
    """Rounds to float8 (e4m3); the gradient passes as it is."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight.to(torch.float8_e4m3fn).to(weight.dtype) - weight).detach()


def smaller(teacher: RRDBNet, leave_out: list[int]) -> RRDBNet:
    """The network without some of its blocks.

    Raises:
        ValueError: numbers of blocks that it does not have, or all of them.
    """
    kept = [block for number, block in enumerate(teacher.body) if number not in leave_out]
    if not kept or len(kept) != len(teacher.body) - len(leave_out):
        raise ValueError(f"`leave_out` must be numbers of some of its {len(teacher.body)} blocks, got {leave_out}")
    student = RRDBNet(**{**{k: v for k, v in teacher.config.items() if k[0] != "_"}, "num_blocks": len(kept)})
    student.load_state_dict({k: v for k, v in teacher.state_dict().items() if not k.startswith("body.")}, strict=False)
    student.body.load_state_dict(nn.Sequential(*kept).state_dict())
    return student


def round_blocks(student: RRDBNet) -> list[nn.Module]:
    """Rounds the numbers of the blocks, and leaves these and the convolution after them to be trained."""
    student.requires_grad_(False)
    layers: list[nn.Module] = [layer for layer in student.body.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        layer.requires_grad_(True)
        for name in ("weight", "bias"):
            parametrize.register_parametrization(layer, name, Float8())
    student.conv_body.requires_grad_(True)
    return layers


def train(teacher: RRDBNet, student: RRDBNet, given: argparse.Namespace) -> None:
    """Trains the student's blocks to give the teacher's images and features."""
    data = ImageFolder(
        given.train_data_dir, CROP, seed=SEED, horizontal_flip=True, rotate=True,
        scales=(1.0, 1.0, 0.75, 0.6, 0.5, 0.4), crops_per_image=4, cache_bytes=2**31,
    )  # fmt: skip
    degradation = load_degradation("real")
    data.degrade = lambda crop, number: degrade(crop, degradation, 7007, number)
    order = RandomSampler(data, generator=torch.Generator().manual_seed(SEED))
    loader = DataLoader(data, batch_size=BATCH, sampler=order, drop_last=True)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=given.learning_rate, betas=(0.9, 0.95))
    done, squares = 0, 0.0
    while done < given.updates:
        data.set_epoch(done)
        for batch in loader:
            fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done / given.updates))
            optimizer.param_groups[0]["lr"] = given.learning_rate * min(1, (done + 1) / WARMUP) * fall
            y = (batch["low"].float() / 255).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    features = teacher.features(y)
                    image = teacher.image(features).float()
                own = student.features(y)
                drawn = student.image(own).float()
            far = (own.float() - features.float()).abs().mean() / features.float().abs().mean()
            loss = (drawn - image).abs().mean() + FEATURE_WEIGHT * far
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, MAX_NORM)
            optimizer.step()
            done, squares = done + 1, squares + (drawn - image).detach().square().mean().item()
            if done % 20 == 0:
                print(f"update {done}: {-10 * math.log10(squares / 20):.2f} dB", flush=True)
                squares = 0.0
            if done == given.updates:
                return


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", metavar="REALESRGAN", help="folder of the converted weights")
    parser.add_argument("--train_data_dir", nargs="+", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--leave_out", type=int, nargs="+", default=[7, 8, 9, 11, 18])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--learning_rate", type=float, default=3e-5)
    given = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    teacher = RRDBNet.from_pretrained(given.network).requires_grad_(False).to(memory_format=torch.channels_last)
    try:
        student = smaller(teacher, given.leave_out).to(memory_format=torch.channels_last)
    except ValueError as error:
        parser.error(str(error))
    layers = round_blocks(student)
    train(teacher, student, given)
    for layer in layers:
        for name in ("weight", "bias"):
            parametrize.remove_parametrizations(layer, name)  # which leaves the rounded numbers
    student.save_pretrained(given.output_dir)


if __name__ == "__main__":
    main()
