"""The data against what its docstrings promise."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from recipes.data import CIFAR10, CIFAR100, Digits, ImageFolder, Split, channel_statistics, draw, shift_and_flip


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup()
    return data


@pytest.fixture
def folder(tmp_path):
    """Three classes of 4, 6 and 8 training and 2 test images whose red level is unique to each image."""
    level = iter(range(255))
    for part, counts in (("train", (4, 6, 8)), ("test", (2, 2, 2))):
        for name, count in zip(("ant", "bee", "cow"), counts, strict=True):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 24), (next(level), 0, 9)).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_digits_are_balanced_and_counted(digits):
    assert digits.test.targets.bincount().tolist() == [50] * 10
    assert len(digits.train) == 3 * (1797 - 500)
    assert digits.class_names == [str(i) for i in range(10)]
    assert digits.train[0][0].shape == (3, 32, 32)


def test_held_out_digits_do_not_leak(monkeypatch):
    """The strokes that reach the training set and those that reach the test set are disjoint, and together all."""
    laid = []

    def record(strokes, photographs, generator):
        laid.append(strokes)
        return torch.zeros(len(strokes), 3, 32, 32, dtype=torch.uint8).random_(generator=generator)

    monkeypatch.setattr("recipes.data.compose", record)
    Digits().load()
    train, test = ([stroke.numpy().tobytes() for stroke in strokes] for strokes in laid)
    everything = [image.tobytes() for image in load_digits().images]
    assert not set(train) & set(test)
    assert sorted(train) == sorted(3 * [d for d in everything if d not in set(test)])
    assert len(test) == 500


def test_digits_lie_over_photographs(digits):
    """Where a digit has no stroke the photograph shows; where it has one the image is its absolute difference."""
    strokes = torch.zeros(1, 8, 8)
    photograph = torch.arange(32 * 32 * 3).remainder(200).reshape(32, 32, 3).to(torch.uint8)
    from recipes.data import compose

    bare = compose(strokes, [photograph], torch.Generator())
    assert torch.equal(bare[0], photograph.permute(2, 0, 1))
    full = compose(strokes + 16, [photograph], torch.Generator())
    changed = full != bare
    assert torch.equal(full[changed], 255 - bare[changed])
    assert changed.sum() == 3 * 24 * 24


def test_one_seed_one_data_set(digits):
    again, other = Digits(seed=0), Digits(seed=1)
    again.setup()
    other.setup()
    assert torch.equal(again.train.split.images, digits.train.split.images)
    assert torch.equal(again.test.split.images, digits.test.split.images)
    assert not torch.equal(other.test.split.images, digits.test.split.images)


def test_plain_pixels_do_not_give_the_classes_away(digits):
    """Nearest class mean on raw pixels, a linear rule, knows little."""
    train, test = (part.split.images.float().flatten(1) for part in (digits.train, digits.test))
    centres = torch.stack([train[digits.train.targets == k].mean(0) for k in range(10)])
    guess = torch.cdist(test, centres).argmin(1)
    assert (guess == digits.test.targets).float().mean() < 0.3


def test_fraction_is_drawn_by_class_and_by_seed(folder):
    def train(**kwargs):
        data = ImageFolder(folder, **kwargs)
        data.setup()
        return data.train

    assert train(fraction=0.5).targets.bincount().tolist() == [2, 3, 4]
    half = train(fraction=0.5).split.images
    assert torch.equal(half, train(fraction=0.5, seed=0).split.images)
    assert not all(torch.equal(half, train(fraction=0.5, seed=s).split.images) for s in (1, 2, 3))
    assert len(train()) == 18


def test_fraction_too_small_names_class_and_remedy(folder):
    data = ImageFolder(folder, fraction=0.1)
    with pytest.raises(ValueError, match=r"fraction=0.1 leaves no image of class 'ant', which has 4: .* 0\.25 or more"):
        data.setup()


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        Digits(fraction=fraction)


def test_draw_takes_each_member_at_most_once():
    labels = torch.arange(60) % 3
    chosen = draw(labels, [20, 5, 0], torch.Generator().manual_seed(1))
    assert labels[chosen].bincount(minlength=3).tolist() == [20, 5, 0]
    assert len(chosen.unique()) == 25


def test_image_folder_reads_resizes_and_alternates_classes(folder):
    data = ImageFolder(folder, image_size=16)
    assert data.num_classes == 3
    data.setup()
    assert data.class_names == ["ant", "bee", "cow"]
    assert data.test.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.train.targets.bincount().tolist() == [4, 6, 8]
    assert data.train.split.images.shape == (18, 3, 16, 16)
    red = data.test.split.images[:, 0].flatten(1)
    assert red[:, 0].tolist() == [18, 20, 22, 19, 21, 23]
    assert (red == red[:, :1]).all()


def test_image_folder_accepts_val(folder):
    (folder / "test").rename(folder / "val")
    data = ImageFolder(folder)
    data.setup()
    assert len(data.test) == 6


def test_image_folder_wrong_use(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match=r"no folder .*train.*--data.root"):
        ImageFolder(tmp_path_factory.mktemp("empty"))
    (folder / "train" / "dog").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "train" / "dog" / "0.png")
    with pytest.raises(ValueError, match=r"same folders of classes.*\['dog'\]"):
        ImageFolder(folder).setup()


def test_normalised_training_images_have_mean_zero_and_deviation_one(digits):
    images = digits.train.split.images
    mean, std = channel_statistics(images)
    pixels = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-6)
    served = torch.cat([x for x, _ in digits.val_dataloader()])
    expected = (digits.test.split.images / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(served, expected)


def test_the_probe_is_the_same_for_every_fraction(digits):
    few = Digits(fraction=0.1)
    few.setup()
    assert len(few.train) < len(digits.train) / 5
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(few.val_dataloader(), digits.val_dataloader(), strict=True))


def test_crops_are_windows_of_the_padded_image_and_flips_mirror_them():
    images = torch.randint(1, 256, (200, 3, 8, 8), dtype=torch.uint8)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(2, 3))  # (N, C, 5, 5, 8, 8)

    def offsets(out, candidates):
        return (candidates == out[:, :, None, None]).all((1, 4, 5))  # (N, 5, 5)

    straight = offsets(shift_and_flip(images, flip=False, padding=2).numpy(), windows)
    assert straight.any((1, 2)).all()
    assert straight.any(0).all(), "every one of the 25 shifts occurs in 200 draws"
    either = shift_and_flip(images, flip=True, padding=2).numpy()
    mirrored = offsets(either[..., ::-1], windows).any((1, 2))
    assert (mirrored | offsets(either, windows).any((1, 2))).all()
    assert 60 < mirrored.sum() < 140


def test_augmentation_is_for_training_only(digits):
    first = [next(iter(digits.train_dataloader()))[0] for _ in range(2)]
    assert not torch.equal(*first)
    for loader in (digits.val_dataloader, digits.probe_dataloader):
        assert torch.equal(next(iter(loader()))[0], next(iter(loader()))[0])
    assert digits.test.augment is None
    assert digits.train.augment.keywords == {"flip": False}, "a mirrored digit is another digit"


def test_a_lone_last_image_is_left_out_of_training(digits):
    digits_of_one_more = [len(x) for x, _ in digits.train_dataloader()]
    assert set(digits_of_one_more) == {128}


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_missing_cifar_says_what_to_do(source, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
    message = rf"{source.__name__} is not in .*Name or service.*tar\.gz.*--data\.root"
    with pytest.raises(FileNotFoundError, match=message):
        source(str(tmp_path)).prepare_data()


def test_cifar10_as_torchvision_keeps_it(cifar_root):
    data = CIFAR10(str(cifar_root), fraction=0.5)
    data.prepare_data()
    data.setup()
    assert data.train.targets.bincount().tolist() == [5] * 10
    assert data.test.targets.tolist() == 2 * list(range(10))
    assert data.class_names[3] == "cat"
    images = data.test.split.images
    assert images.shape == (20, 3, 32, 32)
    assert images[3].flatten(1).unique(dim=1).squeeze().tolist() == [30, 60, 45]  # red, green, blue of that class


def test_split_is_kept_as_bytes(digits):
    assert isinstance(digits.train.split, Split)
    assert digits.train.split.images.dtype == torch.uint8
