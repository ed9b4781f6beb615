"""The pictures: find, verify, split, normalise and augment them."""

import contextlib
import errno
import http.client
import os
import shutil
import signal
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import MNIST, FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import calculate_md5, check_integrity
from tqdm import tqdm

import synthetic
from files import LOCK, WorldFault, keep_folder

IMAGE_SIZE = 28  # pixels, both ways
CLASS_NAMES = tuple(FashionMNIST.classes)
CLASS_COUNT = len(CLASS_NAMES)

FASHION_MNIST = "fashion-mnist"
SYNTHETIC = "synthetic"
# What the reader is told that the pictures are.
TITLES = {FASHION_MNIST: "Fashion-MNIST", SYNTHETIC: "drawn stand-in, not Fashion-MNIST"}

# Every twelfth training image validates: 5,000 of Fashion-MNIST's 60,000, 500 a class.
VALIDATION_SHARE = 1 / 12
# The split has a seed of its own, so that runs of every seed compare on the same images.
SPLIT_SEED = 20170828
# The stand-in is always the same one, for the same reason.
SYNTHETIC_SEED = 0

# MD5 of the four extracted files. torchvision knows those of the archives, which it checks, and
# never looks at what it extracted. Source: the archives of
# https://github.com/zalandoresearch/fashion-mnist, extracted.
EXTRACTED_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
# The same four file names hold plain MNIST elsewhere, a common mix-up: its archives (from
# torchvision) and its extracted files (from http://yann.lecun.com/exdb/mnist, extracted).
MNIST_MD5 = {md5 for _, md5 in MNIST.resources} | {
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
}
# Bounds of a download. The largest archive has 26,421,880 bytes; slower than this it would take
# nine hours.
MAX_ARCHIVE_BYTES = 30_000_000
MIN_BYTES_PER_SECOND = 800
PIECE_BYTES = 1 << 16
STAGING = ".incoming-"  # how folders with files that are not yet verified are called
# What an operating system says when the disk, and not the network, is at fault.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


class NoSource(WorldFault):
    """No network address delivered the dataset."""


@dataclass(frozen=True)
class Dataset:
    """Images as uint8 (N, 28, 28), 0 black ground to 255, labels as int64 (N,), 0 to 9.

    All tensors lie on one device: load_dataset returns them on the CPU, and to brings them to the
    one that trains, where they stay.

    Attributes:
        name: FASHION_MNIST or SYNTHETIC.
        images, labels: the training file whole, of which
        train_indices, validation_indices: say which part serves for what.
        test_images, test_labels: to be looked at once, after training.
        mean, std: of the training part's pixels after division by 255.
    """

    name: str
    images: Tensor
    labels: Tensor
    train_indices: Tensor
    validation_indices: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: float
    std: float

    def to(self, device: torch.device) -> "Dataset":
        """Return the dataset with its tensors on that device."""
        tensors = {key: value for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{key: value.to(device) for key, value in tensors.items()})

    @property
    def title(self) -> str:
        """What the reader is told that the pictures are."""
        return TITLES[self.name]


def load_dataset(
    choice: str,
    data_dir: Path,
    mirror: str | None,
    timeout: float,
    limit: int | None,
    warn: Callable[[str], None],
) -> Dataset:
    """Return the dataset, from the disk, the network or the drawing board.

    Args:
        choice: "fashion-mnist", "synthetic" or "auto": Fashion-MNIST, and the drawn stand-in only
            where neither disk nor network has any of it.
        data_dir: holds, or will hold, FashionMNIST/raw with the four files.
        mirror: address tried before torchvision's own, or None.
        timeout: seconds to wait for an answer from the network, see _download.
        limit: train on the first so many images of the training part only; None for all.
        warn: told when the stand-in takes the place of the real data, or another process is waited
            for.

    Raises:
        WorldFault: when Fashion-MNIST is wanted or there, but cannot be had whole.
    """
    name = SYNTHETIC if choice == SYNTHETIC else FASHION_MNIST
    if name == FASHION_MNIST:
        try:
            train, test = load_fashion_mnist(data_dir, mirror, timeout, warn)
        except NoSource as error:
            if choice == FASHION_MNIST or _any_file_exists(_raw_folder(data_dir)):
                raise
            warn(f"{error}\nThe run goes on with a {TITLES[SYNTHETIC]}.")
            name = SYNTHETIC
    if name == SYNTHETIC:
        train, test = synthetic.draw_dataset(SYNTHETIC_SEED)

    (images, labels), (test_images, test_labels) = train, test
    train_indices, validation_indices = split_indices(labels)
    train_indices = train_indices[:limit]
    mean, std = pixel_statistics(images[train_indices])
    return Dataset(
        name=name,
        images=images,
        labels=labels,
        train_indices=train_indices,
        validation_indices=validation_indices,
        test_images=test_images,
        test_labels=test_labels,
        mean=mean,
        std=std,
    )


def load_fashion_mnist(
    data_dir: Path,
    mirror: str | None = None,
    timeout: float = 20,
    say: Callable[[str], None] = print,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, labels) of the training file and of the test file, after verifying both.

    Args:
        data_dir: see load_dataset.
        mirror: see load_dataset.
        timeout: see load_dataset.
        say: told, in one line, when another process prepares the files and is waited for.

    Returns:
        uint8 (60000, 28, 28) with int64 (60000,), and uint8 (10000, 28, 28) with int64 (10000,).

    Raises:
        WorldFault: when a file is damaged, missing or MNIST's and cannot be replaced.
    """
    raw = _raw_folder(data_dir)
    if _damaged_files(raw):
        _refuse_plain_mnist(raw)
        _restore(raw, mirror, timeout, say)
    elif _is_littered(raw.parent):
        with contextlib.suppress(WorldFault):  # where nothing can be tidied, all is well even so
            _restore(raw, mirror, timeout, say)
    # The class FashionMNIST would read an unverified `processed` folder of an old torchvision
    # first, so its readers are called on the files just verified.
    train, test = (
        (
            read_image_file(str(raw / f"{part}-images-idx3-ubyte")),
            read_label_file(str(raw / f"{part}-labels-idx1-ubyte")),
        )
        for part in ("train", "t10k")
    )
    return train, test


def _damaged_files(raw: Path) -> list[str]:
    """Return the names of the extracted files that are missing or not what they should be."""
    return [name for name, md5 in EXTRACTED_MD5.items() if not _is_intact(raw / name, md5)]


def _is_littered(folder: Path) -> bool:
    """Whether a process is at work in the folder, or was killed there just before it was done."""
    return (folder / LOCK).exists() or any(folder.glob(f"{STAGING}*"))


def _raw_folder(data_dir: Path) -> Path:
    """Where torchvision looks for the files."""
    return data_dir / "FashionMNIST" / "raw"


def _any_file_exists(raw: Path) -> bool:
    """Whether any of the four files or archives is there, in whatever state."""
    return any(
        os.path.lexists(raw / f"{name}{end}") for name in EXTRACTED_MD5 for end in ("", ".gz")
    )


def _is_intact(path: Path, md5: str) -> bool:
    """Whether the path is a file with that MD5; one that cannot be read is not."""
    try:
        return check_integrity(path, md5)
    except OSError:
        return False


def _refuse_plain_mnist(raw: Path) -> None:
    """Raise WorldFault when one of the files or archives is MNIST's."""
    for name in EXTRACTED_MD5:
        for path in (raw / name, raw / f"{name}.gz"):
            if any(_is_intact(path, md5) for md5 in MNIST_MD5):
                raise WorldFault(
                    f"{path} is plain MNIST (handwritten digits), not Fashion-MNIST; "
                    "remove it, or name another folder with --data-dir"
                )


def _restore(raw: Path, mirror: str | None, timeout: float, say: Callable[[str], None]) -> None:
    """Bring the four files into the folder, from good archives there or from the network.

    They are downloaded and extracted in a folder beside it, from which only verified files move
    over: at no time is there a half-written one under a name that counts. Another process that does
    the same is waited for.

    Raises:
        NoSource: when a file is missing or damaged and no address delivers it.
        WorldFault: when the disk is at fault.
    """
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with keep_folder(raw.parent, say), _staging_folder(raw.parent) as staging:
            # Whoever had the folder until now may have done it all.
            damaged = _damaged_files(raw)
            if not damaged:
                return
            staged = _raw_folder(staging)
            staged.mkdir(parents=True)
            for archive, md5 in FashionMNIST.resources:
                if _is_intact(raw / archive, md5):
                    shutil.copyfile(raw / archive, staged / archive)
            try:
                _fetch(staging, raw, damaged, mirror, timeout)
            finally:
                # What did arrive need not be downloaded again.
                for archive, md5 in FashionMNIST.resources:
                    if _is_intact(staged / archive, md5):
                        _move(staged / archive, raw)
            for name in EXTRACTED_MD5:
                _move(staged / name, raw)
    except OSError as error:
        raise WorldFault(f"cannot write to {raw}: {error.strerror or error}") from error


@contextlib.contextmanager
def _staging_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for unverified files, without those that killed processes left."""
    for litter in parent.glob(f"{STAGING}*"):
        shutil.rmtree(litter, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=STAGING) as staging:
        yield Path(staging)


def _move(path: Path, folder: Path) -> None:
    """Move a file into a folder, over a file or link of its name."""
    target = folder / path.name
    if target.is_dir() and not target.is_symlink():
        raise WorldFault(f"{target} is a folder, where a file should be; remove it")
    os.replace(path, target)


def _fetch(
    staging: Path, raw: Path, damaged: list[str], mirror: str | None, timeout: float
) -> None:
    """Download what is missing in staging, one address after the other; let torchvision extract.

    Raises:
        NoSource: when none delivers, with what each one answered.
        OSError: when the disk is at fault.
    """
    addresses = ([mirror.rstrip("/") + "/"] if mirror else []) + FashionMNIST.mirrors
    staged = _raw_folder(staging)
    answers = []
    for address in addresses:
        try:
            for archive, md5 in FashionMNIST.resources:
                if not _is_intact(staged / archive, md5):
                    _download(address + archive, staged / archive, md5, timeout)
            break
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            answers.append(f"{address}: {reason[-1]}")
    else:
        files = ", ".join(damaged)
        raise NoSource(
            f"Fashion-MNIST is not whole ({files} missing or damaged) and could not be downloaded "
            f"({'; '.join(answers)}).\nPut the four files "
            f"{', '.join(archive for archive, _ in FashionMNIST.resources)} into {raw}, or name "
            "an address that has them with --mirror URL."
        )
    # All archives are there and verified, so this only extracts; from a subclass of another name
    # torchvision would take another folder.
    FashionMNIST(str(staging), download=True)
    for name, md5 in EXTRACTED_MD5.items():
        if calculate_md5(staged / name) != md5:
            raise WorldFault(f"{name} came out damaged from its archive; run the command again")


def _download(address: str, path: Path, md5: str, timeout: float) -> None:
    """Download one archive and verify it, within bounds of time and size.

    torchvision's own download waits for ever, for any number of bytes.

    Args:
        address: of the archive.
        path: where to write it; what is there without verification counts for nothing.
        md5: that it must have.
        timeout: seconds until the answer begins, and between any two pieces of it; after so many a
            server slower than MIN_BYTES_PER_SECOND is given up as well.

    Raises:
        OSError, http.client.HTTPException: from network or disk.
        ValueError: when what comes is not the archive.
    """
    with _deadline(timeout):
        response = urllib.request.urlopen(address, timeout=timeout)
    total = int(response.headers.get("Content-Length") or 0) or None
    bar = tqdm(total=total, desc=path.name, unit="B", unit_scale=True, leave=False, disable=None)
    with response, path.open("wb") as file, bar:
        start, received = time.monotonic(), 0
        while piece := response.read1(PIECE_BYTES):
            received += len(piece)
            seconds = time.monotonic() - start
            if received > MAX_ARCHIVE_BYTES:
                raise ValueError(f"{path.name} has more than {MAX_ARCHIVE_BYTES:,} bytes")
            if seconds > timeout and received < MIN_BYTES_PER_SECOND * seconds:
                raise TimeoutError(f"{path.name}: only {received:,} bytes in {seconds:.0f} s")
            file.write(piece)
            bar.update(len(piece))
    arrived = calculate_md5(path)
    if arrived != md5:
        kind = "plain MNIST" if arrived in MNIST_MD5 else "not the file it should be"
        raise ValueError(f"{path.name} came with MD5 {arrived}, which is {kind}")


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so many seconds, in the main thread of a system that has alarms.

    A socket's time-out is for each single read, and a server may drip its answer byte by byte.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def split_indices(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Split a training file into a part to train on and a part to validate on.

    The validation part holds equally many images of each class, one in twelve of the file, chosen
    by SPLIT_SEED alone.

    Args:
        labels: int64 (N,), 0 to 9.

    Returns:
        The two parts' indices, each int64 and ascending.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    per_class = round(len(labels) * VALIDATION_SHARE / CLASS_COUNT)
    validates = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(CLASS_COUNT):
        members = (labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator)
        validates[members[order[:per_class]]] = True
    return (~validates).nonzero().squeeze(1), validates.nonzero().squeeze(1)


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of uint8 images (N, 28, 28) after division by 255."""
    # Counting the 256 values is exact, and needs no float copy of the images.
    counts = torch.bincount(images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum() / counts.sum()
    variance = (counts * (values - mean) ** 2).sum() / counts.sum()
    return mean.item(), variance.sqrt().item()


def normalize(images: Tensor, mean: float, std: float) -> Tensor:
    """Map uint8 images (N, 28, 28) to float32 (N, 1, 28, 28) with zero mean and unit deviation."""
    return images.unsqueeze(1).float().div_(255).sub_(mean).div_(std)


def augment(
    padded: Tensor, indices: Tensor, shifted: float, flip: bool, generator: torch.Generator
) -> Tensor:
    """Cut a batch from padded images, at a random shift or none, and mirror half of it.

    Args:
        padded: uint8 (M, 28 + 2 * shift, 28 + 2 * shift), see pad.
        indices: int64 (N,), which images.
        shifted: share of the images to shift, in [0, 1].
        flip: whether to mirror each one, left to right, with probability one half.
        generator: on the same device; nothing else is drawn from.

    Returns:
        uint8 (N, 28, 28).
    """
    count, device = len(indices), indices.device
    # Every cut there is, as a view: picking from it copies whole rows and not single pixels.
    cuts = padded.unfold(1, IMAGE_SIZE, 1).unfold(2, IMAGE_SIZE, 1)
    places = torch.randint(cuts.shape[1], (2, count), generator=generator, device=device)
    if shifted < 1:
        stays = torch.rand(count, generator=generator, device=device) >= shifted
        places.masked_fill_(stays, cuts.shape[1] // 2)
    top, left = places
    images = cuts[indices, top, left]
    if flip:
        mirrored = torch.rand(count, 1, 1, generator=generator, device=device) < 0.5
        images = torch.where(mirrored, images.flip(2), images)
    return images


def cut_out(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Black out a square of each image, at a random place (DeVries and Taylor, arXiv:1708.04552).

    Args:
        images: uint8 (N, 28, 28), changed in place.
        size: of the square in pixels; around a centre near the border, part of it lies outside.
        generator: on the same device; nothing else is drawn from.

    Returns:
        The images.
    """
    device = images.device
    centres = torch.randint(IMAGE_SIZE, (2, len(images), 1), generator=generator, device=device)
    distances = torch.arange(IMAGE_SIZE, device=device) - (centres - size // 2)
    rows, columns = (distances >= 0) & (distances < size)
    return images.masked_fill_(rows[:, :, None] & columns[:, None, :], 0)


def pad(images: Tensor, shift: int) -> Tensor:
    """Add a black border of shift pixels to uint8 images (N, 28, 28), for augment."""
    return F.pad(images, (shift, shift, shift, shift))
