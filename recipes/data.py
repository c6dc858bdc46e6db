"""Images as Lightning data: handwritten digits over photographs, CIFAR-10, CIFAR-100 and folders of images.

Every source takes the same way: its images stay in memory as bytes, and a batch is cut out of them at once, augmented
where it is for training, and normalised by each channel's mean and deviation over all training images.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torchvision.datasets as tv
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

Sample = tuple[Tensor, Tensor]


class Split(NamedTuple):
    """Images (N, 3, H, W) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor


class Images(Dataset[Sample]):
    """A split served in whole batches: normalised, and augmented where ``augment`` is given.

    Args:
        split: The images and labels.
        mean: Mean of each channel, (3,), on the scale of 0 to 1.
        std: Standard deviation of each channel, (3,).
        augment: Maps a batch of images, (B, 3, H, W) uint8, to another of the same shape.
    """

    def __init__(
        self, split: Split, mean: Tensor, std: Tensor, augment: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.split, self.augment = split, augment
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    @property
    def targets(self) -> Tensor:
        """Labels of all samples, (N,), under the name that torchvision's data sets use."""
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Serve many samples at once; PyTorch's loader asks for a batch through this where it exists."""
        chosen = torch.as_tensor(indices)
        images = self.split.images[chosen]
        if self.augment is not None:
            images = self.augment(images)
        normalised = images.float().div_(255).sub_(self.mean).div_(self.std)
        return list(zip(normalised, self.split.labels[chosen], strict=True))


class Stream(IterableDataset[Sample]):
    """Batches of a split as large data sets come: one after another, nobody knows how many.

    Args:
        images: The split.
        passes: How often each image is in the stream.
        batch_size: Images in a batch.
    """

    def __init__(self, images: Images, passes: int, batch_size: int) -> None:
        self.images, self.passes, self.batch_size = images, passes, batch_size

    def __iter__(self) -> Iterator[Sample]:
        """Every pass in an order of its own, the images that are left over at its end excepted."""
        whole = len(self.images) // self.batch_size * self.batch_size or len(self.images)
        for _ in range(self.passes):
            for part in torch.randperm(len(self.images))[:whole].split(self.batch_size):
                yield default_collate(self.images.__getitems__(part.tolist()))


class ImageData(LightningDataModule):
    """What every source shares; a source knows how to ``load`` its images and how many classes they have.

    Attributes:
        num_classes: Number of classes, known from the start.
        class_names: Their names, in the order of the labels; known after ``setup``.

    Args:
        batch_size: Images in a batch.
        fraction: Share of the training images to train on, drawn class by class.
        seed: Seed of that draw; the training's own seed is ``seed_everything``.
        num_workers: Worker processes that load. Batches are cut from memory: zero is fastest on a few CPU cores.
        stream: Passes over the training images that come as one stream of unknown length, so that a run has one epoch;
            0 for an epoch a pass.
    """

    flip: ClassVar[bool] = True
    num_classes: int
    class_names: list[str]
    train: Images
    test: Images

    def __init__(
        self, batch_size: int = 128, fraction: float = 1.0, seed: int = 0, num_workers: int = 0, stream: int = 0
    ) -> None:
        super().__init__()
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, not {fraction}")
        self.batch_size, self.fraction, self.seed, self.num_workers = batch_size, fraction, seed, num_workers
        self.stream = stream

    def load(self) -> tuple[Split, Split, list[str]]:
        """Return the training images, the test images and the names of the classes."""
        raise NotImplementedError

    def setup(self, stage: str = "fit") -> None:
        """Load the images, once, and draw the fraction to train on.

        Raises:
            ValueError: The fraction leaves a class without images.
        """
        if hasattr(self, "train"):
            return
        train, test, self.class_names = self.load()
        mean, std = channel_statistics(train.images)  # of all of them: the probe is the same for every fraction
        if self.fraction < 1:
            sizes = train.labels.bincount().tolist()
            counts = [math.floor(self.fraction * size + 0.5) for size in sizes]
            if min(counts) == 0:
                smallest, name = min(zip(sizes, self.class_names, strict=True))
                raise ValueError(
                    f"fraction={self.fraction} leaves no image of class {name!r}, which has {smallest}: "
                    f"train on a fraction of {1 / smallest:.2g} or more"
                )
            chosen = draw(train.labels, counts, torch.Generator().manual_seed(self.seed))
            train = Split(train.images[chosen], train.labels[chosen])
        self.train = Images(train, mean, std, partial(shift_and_flip, flip=self.flip))
        self.test = Images(test, mean, std)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Augmented training images in random order."""
        if self.stream:
            return DataLoader(Stream(self.train, self.stream, self.batch_size), batch_size=None)
        whole_batches = len(self.train) >= self.batch_size  # a last batch of one image has no batch statistics
        return self._loader(self.train, shuffle=True, drop_last=whole_batches)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Test images as they are."""
        return self._loader(self.test)

    def probe_dataloader(self) -> DataLoader[Sample]:
        """All test images as they are; ``SSCMonitor`` draws its probe from them, balanced over the classes."""
        return self._loader(self.test)

    def _loader(self, images: Images, **kwargs: Any) -> DataLoader[Sample]:
        workers = self.num_workers
        return DataLoader(images, self.batch_size, num_workers=workers, persistent_workers=workers > 0, **kwargs)


class Digits(ImageData):
    """Handwritten digits over photographs, made from what scikit-learn carries: nothing to download.

    As MNIST-M does with MNIST, each of the 1,797 digits is blended over a random patch of one of two photographs, by
    the absolute difference, a few pixels off the centre. 50 digits of each class are held out for the test. Every
    training digit is composed ``copies`` times, every test digit once, all from one seed.

    Args:
        copies: Compositions of each training digit.
        **kwargs: What every source takes: batch_size, fraction, seed (of the compositions, too), num_workers, stream.
    """

    flip = False
    num_classes = 10

    def __init__(self, copies: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.copies = copies

    def load(self) -> tuple[Split, Split, list[str]]:
        """Hold out the test digits, then lay all over photographs."""
        generator = torch.Generator().manual_seed(self.seed)
        digits = load_digits()
        strokes, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.target).long()
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        held_out[draw(labels, [50] * 10, generator)] = True
        train = Split(strokes[~held_out].repeat(self.copies, 1, 1), labels[~held_out].repeat(self.copies))
        test = Split(strokes[held_out], labels[held_out])
        photographs = [torch.from_numpy(np.array(p)) for p in load_sample_images().images]
        composed = [Split(compose(s.images, photographs, generator), s.labels) for s in (train, test)]
        return composed[0], composed[1], [str(name) for name in digits.target_names]


class CIFAR10(ImageData):
    """CIFAR-10 through torchvision: 50,000 training and 10,000 test images of 32 x 32.

    Args:
        root: Folder that holds torchvision's copy, or receives it.
        **kwargs: What every source takes: batch_size, fraction, seed, num_workers, stream.

    Raises:
        FileNotFoundError: The images are neither in ``root`` nor to be downloaded.
    """

    source: ClassVar[type[tv.CIFAR10]] = tv.CIFAR10
    num_classes = 10

    def __init__(self, root: str = "data", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def prepare_data(self) -> None:
        """Download the images where they are missing."""
        try:
            self.source(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{self.source.__name__} is not in {Path(self.root).resolve()} and cannot be downloaded ({error}). "
                f"Put {self.source.filename} there, fetched from {self.source.url} on a machine with a network, "
                f"or name the folder that holds {self.source.base_folder}/ with --data.root"
            ) from error

    def load(self) -> tuple[Split, Split, list[str]]:
        """Read torchvision's copy."""
        train, test = self.source(self.root, train=True), self.source(self.root, train=False)
        splits = [Split(_channels_first(part.data), torch.tensor(part.targets)) for part in (train, test)]
        return splits[0], splits[1], list(train.classes)


class CIFAR100(CIFAR10):
    """CIFAR-100 through torchvision: as CIFAR-10, with 100 classes of 500 training and 100 test images."""

    source = tv.CIFAR100
    num_classes = 100


class ImageFolder(ImageData):
    """Anyone's own images: ``root/train/CLASS/*`` and ``root/test/CLASS/*`` (or ``root/val``), held in memory.

    Args:
        root: Folder that holds ``train`` and ``test``.
        image_size: Height and width in pixels to which every image is resized.
        **kwargs: What every source takes: batch_size, fraction, seed, num_workers, stream.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: The folders of classes differ between training and test.
    """

    def __init__(self, root: str, image_size: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        folder = Path(root)
        self.folders = folder / "train", folder / ("test" if (folder / "test").is_dir() else "val")
        for part in self.folders:
            if not part.is_dir():
                raise FileNotFoundError(
                    f"no folder {part}: {root} must hold train/CLASS/*.png and test/CLASS/*.png (or val/); "
                    "name the folder with --data.root"
                )
        self.image_size = image_size
        self.num_classes = len(tv.folder.find_classes(self.folders[0])[0])

    def load(self) -> tuple[Split, Split, list[str]]:
        """Read every image and bring it to one size."""
        train, test = (tv.ImageFolder(folder) for folder in self.folders)
        if train.classes != test.classes:
            raise ValueError(
                f"{self.folders[0]} and {self.folders[1]} must hold the same folders of classes; only one of them "
                f"has {sorted(set(train.classes) ^ set(test.classes))}"
            )
        return self._read(train), self._read(test), train.classes

    def _read(self, folder: tv.ImageFolder) -> Split:
        classes = [list(members) for _, members in groupby(folder.samples, key=itemgetter(1))]
        # One image of each class, then the next of each, so that any leading part of the set is balanced.
        samples = [sample for row in zip_longest(*classes) for sample in row if sample is not None]
        size = (self.image_size, self.image_size)
        images = (folder.loader(path) for path, _ in samples)
        pixels = np.stack([np.asarray(image if image.size == size else image.resize(size)) for image in images])
        return Split(_channels_first(pixels), torch.tensor([label for _, label in samples]))


def _channels_first(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def draw(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw ``counts[k]`` samples of every class k at random; return their indices in ascending order.

    Example:
        >>> draw(torch.tensor([0, 1, 1, 0]), [2, 0], torch.Generator())
        tensor([0, 3])
    """
    chosen = []
    for label, count in enumerate(counts):
        members = (labels == label).nonzero().squeeze(1)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def compose(strokes: Tensor, photographs: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Lay digits over random patches of photographs, by the absolute difference.

    Args:
        strokes: Digits, (N, 8, 8), from 0 to 16.
        photographs: Each (H, W, 3) uint8.
        generator: Draws photographs, patches and shifts.

    Returns:
        Images, (N, 3, 32, 32) uint8.
    """
    large = F.interpolate(strokes[:, None].float(), size=(24, 24), mode="bilinear", antialias=False)
    images = torch.empty(len(strokes), 3, 32, 32, dtype=torch.uint8)
    for i, stroke in enumerate(large[:, 0] * (255 / 16)):
        photograph = photographs[int(torch.randint(len(photographs), (), generator=generator))]
        top, left = (int(torch.randint(n - 31, (), generator=generator)) for n in photograph.shape[:2])
        y, x = torch.randint(9, (2,), generator=generator).tolist()
        patch = photograph[top : top + 32, left : left + 32].permute(2, 0, 1).float()
        patch[:, y : y + 24, x : x + 24] = (patch[:, y : y + 24, x : x + 24] - stroke).abs()
        images[i] = patch.round().to(torch.uint8)
    return images


def shift_and_flip(images: Tensor, flip: bool, padding: int = 4) -> Tensor:
    """Crop each image at random after padding it with zeros, and mirror every second one, on average.

    Args:
        images: (N, C, H, W), any dtype.
        flip: Whether to mirror.
        padding: Pixels added on every side.

    Returns:
        Images of the same shape, drawn with PyTorch's global generator.
    """
    n, c, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = torch.randint(2 * padding + 1, (n, 1)) + torch.arange(h)
    columns = torch.randint(2 * padding + 1, (n, 1)) + torch.arange(w)
    if flip:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    strips = padded.gather(2, rows[:, None, :, None].expand(n, c, h, w + 2 * padding))
    return strips.gather(3, columns[:, None, None, :].expand(n, c, h, w))


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of (N, C, H, W) uint8 images, (C,) each, on the scale of 0 to 1."""
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    share, level = counts / counts.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    return mean.float(), (share @ level**2 - mean**2).sqrt().float()
