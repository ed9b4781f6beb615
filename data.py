"""The pictures: find, verify, split, normalise and augment them.

The module lowest in the chain also holds what every other one needs: the two errors that end a
script in words, and the function that writes a file whole or not at all.
"""

import contextlib
import errno
import http.client
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import MNIST, FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import calculate_md5, check_integrity

import synthetic

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
# What an operating system says when the disk, and not the network, is at fault.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


class UserMistake(Exception):
    """Something was asked for that cannot be: says what, and what to do; exit status 2."""

    exit_status = 2


class WorldFault(Exception):
    """Disk, network, data or numbers failed: says what, and what to do; exit status 1."""

    exit_status = 1


class NoSource(WorldFault):
    """No network address delivered the dataset."""


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader sees the old content or the new, never a part.

    Raises:
        WorldFault: when it cannot be written; what stood there before still stands.
    """
    # One fixed name beside the target: what a killed run leaves, the next one overwrites.
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise WorldFault(f"cannot write {path}: {error.strerror or error}") from error


def prepare_folder(folder: Path) -> None:
    """Make the folder that results go to and try it out, before hours are spent on them.

    Raises:
        WorldFault: when it cannot be made or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WorldFault(
            f"cannot write to the output folder {folder}: {error.strerror or error}; "
            "name another one with --out"
        ) from error


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
        timeout: seconds that one read from the network may take.
        limit: train on the first so many images of the training part only; None for all.
        warn: told, in one line, when the stand-in takes the place of the real data.

    Raises:
        WorldFault: when Fashion-MNIST is wanted or there, but cannot be had whole.
    """
    name = SYNTHETIC if choice == SYNTHETIC else FASHION_MNIST
    if name == FASHION_MNIST:
        try:
            train, test = load_fashion_mnist(data_dir, mirror, timeout)
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
    data_dir: Path, mirror: str | None = None, timeout: float = 20
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, labels) of the training file and of the test file, after verifying both.

    Args:
        data_dir: see load_dataset.
        mirror: see load_dataset.
        timeout: see load_dataset.

    Returns:
        uint8 (60000, 28, 28) with int64 (60000,), and uint8 (10000, 28, 28) with int64 (10000,).

    Raises:
        WorldFault: when a file is damaged, missing or MNIST's and cannot be replaced.
    """
    raw = _raw_folder(data_dir)
    damaged = [name for name, md5 in EXTRACTED_MD5.items() if not _is_intact(raw / name, md5)]
    if damaged:
        _refuse_plain_mnist(raw)
        _restore(raw, damaged, mirror, timeout)
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


def _restore(raw: Path, damaged: list[str], mirror: str | None, timeout: float) -> None:
    """Bring the four files into the folder, from good archives there or from the network.

    torchvision downloads and extracts in a folder beside it, from which only verified files move
    over: at no time is there a half-written one under a name that counts.

    Raises:
        NoSource: when a file is missing or damaged and no address delivers it.
        WorldFault: when the disk is at fault.
    """
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=raw.parent, prefix=".incoming-") as staging:
            staged = _raw_folder(Path(staging))
            staged.mkdir(parents=True)
            for archive, md5 in FashionMNIST.resources:
                if _is_intact(raw / archive, md5):
                    shutil.copyfile(raw / archive, staged / archive)
            try:
                _fetch(Path(staging), raw, damaged, mirror, timeout)
            finally:
                # What did arrive need not be downloaded again.
                for archive, md5 in FashionMNIST.resources:
                    if _is_intact(staged / archive, md5):
                        _move(staged / archive, raw)
            for name in EXTRACTED_MD5:
                _move(staged / name, raw)
    except OSError as error:
        raise WorldFault(f"cannot write to {raw}: {error.strerror or error}") from error


def _move(path: Path, folder: Path) -> None:
    """Move a file into a folder, over a file or link of its name."""
    target = folder / path.name
    if target.is_dir() and not target.is_symlink():
        raise WorldFault(f"{target} is a folder, where a file should be; remove it")
    os.replace(path, target)


def _fetch(
    staging: Path, raw: Path, damaged: list[str], mirror: str | None, timeout: float
) -> None:
    """Let torchvision download and extract what is missing in staging, one address after the other.

    Raises:
        NoSource: when none delivers, with what each one answered.
        OSError: when the disk is at fault.
    """
    addresses = ([mirror.rstrip("/") + "/"] if mirror else []) + FashionMNIST.mirrors
    answers = []
    for address in addresses:
        # torchvision takes its addresses from the class, and the folder's name from the class's.
        source = type("FashionMNIST", (FashionMNIST,), {"mirrors": [address]})
        try:
            with _network_timeout(timeout):
                source(staging, download=True)
            break
        except (OSError, RuntimeError, http.client.HTTPException, ValueError) as error:
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
    for name, md5 in EXTRACTED_MD5.items():
        if calculate_md5(_raw_folder(staging) / name) != md5:
            raise WorldFault(f"{name} came out damaged from its archive; run the command again")


@contextlib.contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Bound every read from the network: torchvision's own download would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


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
