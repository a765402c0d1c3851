"""Damaged files of every format that is read: each is an image or an `ImageError`, soon, and in bounded memory; and
what is read can be written, with its profile and EXIF, in every format.

python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--memory 2GB] [--seconds 5]

Seconds are those of the processor; a case that takes six times as many by the clock is a hang.

A case is a small file of some format and mode with bytes flipped, cut, repeated, zeroed or spliced in from another
file, or with its size fields overwritten. Cases are decoded in processes of their own, so that a crash or a hang is
seen; the bound of memory is set on their address space beyond what they start with.
"""

import argparse
import io
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from hvae_sr.images import (
    SUFFIXES,
    WIDE_SUFFIXES,
    ImageError,
    WideImage,
    list_frames,
    load_image,
    read_metadata,
    read_photo,
    save_image,
    to_tensor,
)
from hvae_sr.sampling.memory import parse_bytes


def originals() -> dict[str, bytes]:
    """Files of every format, and of the modes that each can hold."""
    levels = np.random.default_rng(0).integers(0, 256, (24, 36, 4), dtype=np.uint8)
    smooth = Image.fromarray(levels[:6, :9]).resize((36, 24), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    files: dict[str, bytes] = {}

    def add(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[name] = buffer.getvalue()

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        add(
            f"png-{mode}",
            smooth.convert("L").convert(mode) if mode == "I;16" else smooth.convert(mode),
            "PNG",
            exif=exif,
        )
    for mode in ("L", "RGB", "CMYK"):
        add(f"jpeg-{mode}", smooth.convert(mode), "JPEG", exif=exif)
    add("jpeg-progressive", smooth.convert("RGB"), "JPEG", progressive=True)
    for lossless in (False, True):
        add(f"webp-{lossless}", smooth, "WEBP", lossless=lossless, exif=exif)
    frames = [smooth.rotate(90 * turn) for turn in range(3)]
    add("webp-animated", frames[0], "WEBP", save_all=True, append_images=frames[1:])
    add("png-animated", frames[0], "PNG", save_all=True, append_images=frames[1:])
    add("gif", frames[0].convert("P"), "GIF", save_all=True, append_images=[frame.convert("P") for frame in frames[1:]])
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        add(f"tiff-{compression}", smooth.convert("RGB"), "TIFF", compression=compression)
    for mode in ("1", "L", "CMYK", "F", "I;16", "RGBA"):
        add(
            f"tiff-{mode}", smooth.convert("L").convert(mode) if mode in ("F", "I;16") else smooth.convert(mode), "TIFF"
        )
    for kind in (np.uint16, np.float32):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, (levels[..., :3] / 255).astype(kind), photometric="rgb", compression="zlib")
        files[f"tiff-colour-{np.dtype(kind)}"] = buffer.getvalue()
    wide = np.random.default_rng(1).integers(0, 65536, (24, 36, 4), dtype=np.uint16)
    for name, values, options in (
        ("planar", wide[..., :3], {"planarconfig": "separate"}),
        ("big-endian", wide[..., :3], {"byteorder": ">", "compression": "zlib"}),
        ("tiled", (wide / 65535).astype(np.float32), {"tile": (16, 16), "extrasamples": ["assocalpha"]}),
        ("half", (wide[..., :3] / 65535).astype(np.float16), {"bigtiff": True}),
    ):
        buffer = io.BytesIO()
        whole = np.moveaxis(values, -1, 0) if name == "planar" else values
        tifffile.imwrite(buffer, whole, photometric="rgb", **options)
        files[f"tiff-deep-{name}"] = buffer.getvalue()
    buffer = io.BytesIO()
    for values in (wide[..., 0], (wide / 65535).astype(np.float32)[..., 0]):
        buffer.seek(0)
        tifffile.imwrite(buffer, values, photometric="miniswhite", append=bool(buffer.getvalue()))
    files["tiff-white-is-zero-pages"] = buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        for channels in range(1, 5):
            for suffix in ("png", "tif"):
                path = Path(folder, f"deep.{suffix}")
                save_image(WideImage(wide[..., :channels]), path, {"seed": 1}, exif.tobytes())
                files[f"{suffix}-16-{channels}"] = path.read_bytes()
    add("png-key", smooth.convert("L"), "PNG", transparency=9)
    add("png-colour-key", smooth.convert("RGB"), "PNG", transparency=(1, 2, 3))
    flagless = bytearray(files["webp-animated"])
    flagless[20] &= ~0x10
    files["webp-without-flag"] = bytes(flagless)
    add("mpo", smooth.convert("RGB"), "MPO", save_all=True, append_images=[smooth.convert("RGB").resize((9, 6))])
    try:
        import pillow_heif
    except ImportError:
        pass  # it is an extra
    else:
        for name, mode, values in (("8", "RGB", levels[..., :3]), ("16", "RGB;16", wide[..., :3])):
            buffer = io.BytesIO()
            pillow_heif.from_bytes(mode, (36, 24), values.tobytes()).save(buffer)
            files[f"heic-{name}"] = buffer.getvalue()
    chunks = PngImagePlugin.PngInfo()
    for chunk, content in ((b"cICP", bytes([12, 13, 0, 1])), (b"gAMA", bytes([0, 1, 134, 160])), (b"cHRM", bytes(32))):
        chunks.add(chunk, content)
    add("png-chunks", smooth.convert("RGB"), "PNG", pnginfo=chunks)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        add(
            f"profile-{kind}",
            smooth.convert("L" if kind == "PNG" else "RGB"),
            kind,
            icc_profile=profile,
            dpi=(300, 300),
        )
    add("jpeg-CMYK-profile", smooth.convert("CMYK"), "JPEG", icc_profile=profile)
    pages = [smooth.convert("P"), smooth.convert("RGB")]
    add("tiff-pages", pages[0], "TIFF", save_all=True, append_images=pages[1:], exif=exif)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        add(f"bmp-{mode}", smooth.convert(mode), "BMP")
    add("avif", smooth, "AVIF", exif=exif)
    add("jpeg2000", smooth.convert("RGB"), "JPEG2000")
    for mode in ("1", "L", "RGB"):
        add(f"ppm-{mode}", smooth.convert(mode), "PPM")
    files["ppm-16"] = b"P6 36 24 65535\n" + wide[..., :3].astype(">u2").tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "own.png")
        save_image(smooth.convert("RGB"), path, {"seed": 1, "temperature": 0.5})
        files["own"] = path.read_bytes()
    return files


def mutate(files: dict[str, bytes], seed: int) -> tuple[str, bytes]:
    """Case number `seed`: the name of the file it was made from, and its bytes."""
    chance = random.Random(seed)
    name = chance.choice(sorted(files))
    data = bytearray(files[name])
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        at = chance.randrange(len(data))
        if chance.random() < 0.5:
            at = min(at, chance.randrange(64))  # headers are where damage does most
        length = chance.choice((1, 2, 4, 8, 64))
        how = chance.randrange(8)
        if how == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            data[at : at + length] = chance.randbytes(length)
        elif how == 2:
            del data[at:]
        elif how == 3:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif how == 4:
            data[at:at] = data[at : at + length] * chance.choice((1, 3, 500))
        elif how == 5:
            data[at : at + length] = b"\xff" * len(data[at : at + length])
        elif how == 6:
            other = files[chance.choice(sorted(files))]
            start = chance.randrange(len(other))
            data[at : at + length] = other[start : start + 8 * length]
        else:  # a size, little or big endian
            size = chance.choice((0, 1, 0x7FFF, 0xFFFF, 20000, 10**6, 0x7FFFFFFF, 0xFFFFFFFF))
            data[at : at + 4] = size.to_bytes(4, chance.choice(("little", "big")))  # type: ignore[arg-type]
    return name, bytes(data)


def read(path: Path) -> str:
    """Everything that is done with an input file; "read" or "refused"."""
    result = "refused"
    frames: list[str] = []
    for reader in (load_image, read_photo, to_tensor, list_frames, read_metadata, lambda path: read_photo(path, 1)):
        try:
            found = reader(path)
        except ImageError as error:
            if "\n" in str(error):
                raise RuntimeError(f"the message has several lines: {error}") from error
            continue
        if reader is load_image:
            result, size = "read", found.size
        elif reader is list_frames:
            frames = found
        elif reader in (read_photo, to_tensor) and result == "read":
            shapes = (
                {tuple(found.shape[1:])} if reader is to_tensor else {found.pixels.shape[:2], found.image.size[::-1]}
            )
            if shapes != {size[::-1]}:
                raise RuntimeError(f"sizes differ: {size} and {shapes}")
    if result == "read" and size[0] * size[1] < 2**14:  # and no side that a format cannot hold
        photo = read_photo(path)
        for suffix in SUFFIXES:
            bits = photo.bits if suffix in WIDE_SUFFIXES else 8
            save_image(
                photo.finish(photo.image, True, bits), path.with_name(f"result{suffix}"), {"seed": 1}, photo.exif
            )
            load_image(path.with_name(f"result{suffix}"))
    told = sorted(map(int, frames[0].split(",")[0].split("x"))) if frames else None
    if result == "read" and told not in (None, sorted(size)):
        raise RuntimeError(f"the header says {told}, the image has {size}")
    return result


def work(cases: Any, results: Any, seed: int, memory: int) -> None:
    """A process that decodes the cases it is given."""
    files = originals()
    warnings.simplefilter("ignore")
    null = open("/dev/null", "w")
    import os

    os.dup2(null.fileno(), 2)  # decoders written in C complain there
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, resource.RLIM_INFINITY))
    results.put("ready")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.png")
        for case in iter(cases.get, None):
            name, data = mutate(files, seed + case)
            path.write_bytes(data)
            start = time.process_time()
            try:
                result = read(path)
            except BaseException as error:
                result = f"{type(error).__name__}: {error}"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            results.put((case, name, result, time.process_time() - start, peak))


def fuzz(num_cases: int, seed: int = 0, memory: int = 2**31, seconds: float = 5.0) -> tuple[Counter[str], list[str]]:
    """Decodes the cases; returns how many were read and refused, and one line for each that went wrong."""
    context = multiprocessing.get_context("spawn")
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    waiting = iter(range(num_cases))
    case: int | None = next(waiting, None)
    process = None
    slowest, base, peak = 0.0, None, 0
    while case is not None:
        if process is None:
            cases, results = context.Queue(), context.Queue()
            process = context.Process(target=work, args=(cases, results, seed, memory), daemon=True)
            process.start()
            results.get(timeout=600)
        cases.put(case)
        deadline = time.monotonic() + 6 * seconds  # of the clock: other processes may want the processor too
        outcome = None
        while outcome is None and process.is_alive() and time.monotonic() < deadline:
            try:
                outcome = results.get(timeout=0.5)
            except Exception:  # noqa: S112, BLE001 - the queue is empty
                continue
        if outcome is None:
            wrong.append(
                f"case {case} ({mutate(originals(), seed + case)[0]}): "
                + ("hang" if process.is_alive() else f"crash {process.exitcode}")
            )
            process.kill()
            process = None
        else:
            _, name, result, taken, rss = outcome
            counts[result if result in ("read", "refused") else "wrong"] += 1
            if result not in ("read", "refused"):
                wrong.append(f"case {case} ({name}): {result}")
            if taken > seconds:
                wrong.append(f"case {case} ({name}): {taken:.1f} s")
            base = rss if base is None else base
            slowest, peak = max(slowest, taken), max(peak, rss - base)
        case = next(waiting, None)
    if process is not None:
        cases.put(None)
        process.join(10)
    print(f"slowest case {slowest:.2f} s; memory grew by {peak / 1024:.0f} MiB at the most", file=sys.stderr)
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", default="2GB", help="bound beyond what a process starts with")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    counts, wrong = fuzz(options.cases, options.seed, parse_bytes(options.memory), options.seconds)
    print(f"{options.cases} cases of {len(originals())} files: {counts['read']} read, {counts['refused']} refused")
    for line in wrong:
        print(line)
    print("nothing went wrong" if not wrong else f"{len(wrong)} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
