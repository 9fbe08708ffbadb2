"""Loading images: splits that do not leak, layouts, and files that cannot be read."""

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvae.data import Data, load


def write_idx(path: Path, images: np.ndarray, magic: bytes = b"\0\0\x08\x03", compress: bool = False) -> Path:
    content = magic + struct.pack(f">{images.ndim}I", *images.shape) + images.tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)
    return path


def frames(count: int, height: int = 4, width: int = 5, top: int = 255) -> np.ndarray:
    """Images whose first pixel is their number."""
    images = np.random.default_rng(0).integers(0, top + 1, (count, height, width), dtype=np.uint8)
    images[:, 0, 0] = np.arange(count)
    return images


def numbers(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_digits_are_split_once_into_all_images_without_overlap() -> None:
    from sklearn.datasets import load_digits

    data = load("digits")
    assert (len(data.train), len(data.valid), len(data.test), data.num_levels) == (1297, 200, 300, 17)
    ours = sorted(map(tuple, torch.cat([data.train, data.valid, data.test]).flatten(1).tolist()))
    assert ours == sorted(map(tuple, load_digits().images.reshape(-1, 64).astype(int).tolist()))
    assert data.event_shape == (1, 8, 8)


def test_split_of_digits_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = load("digits")
    torch.manual_seed(2)
    assert torch.equal(first.test, load("digits").test)
    assert not torch.equal(first.test, load("digits", seed=1).test)
    assert "seed 1" in load("digits", seed=1).protocol


def test_digits_split_is_pinned_so_that_figures_stay_comparable() -> None:
    assert (int(load("digits").train.sum()), int(load("digits").test.sum())) == (406540, 92744)


def test_validation_is_held_out_of_train_and_never_of_test(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=frames(30), x_test=frames(7))
    data = load(tmp_path / "a.npz")
    assert (numbers(data.train), numbers(data.valid), numbers(data.test)) == (
        list(range(25)),
        list(range(25, 30)),
        list(range(7)),
    )
    assert len(load(tmp_path / "a.npz", num_valid=9).valid) == 9
    assert "last 5 training images held out" in data.protocol


def test_validation_set_of_the_file_is_used(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=frames(6), x_valid=frames(3), x_test=frames(2))
    data = load(tmp_path / "a.npz")
    assert (len(data.train), len(data.valid), len(data.test)) == (6, 3, 2)
    with pytest.raises(ValueError, match="brings its own 3 validation"):
        load(tmp_path / "a.npz", num_valid=2)
    with pytest.raises(ValueError, match="brings its own 2 test"):
        load(tmp_path / "a.npz", num_test=2)


def test_video_is_split_by_time(tmp_path: Path) -> None:
    np.savez(tmp_path / "faces.npz", X=frames(20))
    data = load(tmp_path / "faces.npz")
    assert numbers(data.train) + numbers(data.valid) + numbers(data.test) == list(range(20))
    assert (len(data.valid), len(data.test)) == (2, 2)
    assert numbers(load(tmp_path / "faces.npz", num_valid=3, num_test=4).test) == [16, 17, 18, 19]
    assert "video order" in data.protocol


def test_packed_bits_become_binary_images(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (5, 784), dtype=np.uint8)
    packed = np.packbits(bits, axis=1)
    np.savez(tmp_path / "b.npz", train_bits=packed, valid_bits=packed[:2], test_bits=packed[:1])
    data = load(tmp_path / "b.npz")
    assert data.num_levels == 2
    np.testing.assert_array_equal(data.train.numpy(), bits.reshape(5, 1, 28, 28))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 4, 5), (1, 4, 5)), ((6, 4, 5, 3), (3, 4, 5)), ((6, 4, 5, 1), (1, 4, 5)), ((6, 3, 4, 5), (3, 4, 5))],
)
def test_layouts_become_channels_first(tmp_path: Path, shape: tuple, expected: tuple) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, x_test=images)
    data = load(tmp_path / "a.npz")
    assert data.event_shape == expected
    want = images[0] if shape[-1] == 5 else np.moveaxis(images[0], -1, 0)
    np.testing.assert_array_equal(data.test[0].numpy(), want.reshape(expected))


@pytest.mark.parametrize(("top", "extra", "levels"), [(1, {}, 2), (255, {}, 256), (16, {"num_levels": 17}, 17)])
def test_number_of_levels(tmp_path: Path, top: int, extra: dict, levels: int) -> None:
    images = np.random.default_rng(0).integers(0, top + 1, (9, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, x_test=images, **extra)
    assert load(tmp_path / "a.npz").num_levels == levels


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("by", ["folder", "file"])
def test_idx_files_are_found_in_pairs(tmp_path: Path, by: str, compress: bool) -> None:
    suffix = ".gz" if compress else ""
    train = write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", frames(12), compress=compress)
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", frames(3), compress=compress)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\0")
    data = load(tmp_path if by == "folder" else train)
    assert numbers(data.train) + numbers(data.valid) == list(range(12))
    np.testing.assert_array_equal(data.test[:, 0].numpy(), frames(3))
    assert data.num_levels == 256


def refuse(path: Path, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        load(path)
    assert path.name in str(error.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere.npz", "does not exist; expected 'digits'")


def test_truncated_and_foreign_npz_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x_train=frames(200), x_test=frames(3))
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refuse(path, "cannot be read as a .npz archive")
    damaged = bytearray(whole)
    damaged[300:340] = bytes(40)
    path.write_bytes(damaged)
    refuse(path, "cannot be read as a .npz archive")
    np.save(tmp_path / "b.npy", frames(3))
    (tmp_path / "b.npy").rename(path)
    refuse(path, "single array")
    path.write_text("some text")  # numpy would take it for a pickle, and advise to unpickle it
    with pytest.raises(ValueError, match="it starts with b'some t', not as the archives") as error:
        load(path)
    assert "allow_pickle" not in str(error.value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train", "some text")
        archive.writestr("x_test", "some text")
    refuse(path, "x_train is not an array")


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    trap = np.array([Trap()], dtype=object)
    np.savez(tmp_path / "a.npz", x_train=trap, x_test=trap, allow_pickle=True)
    with pytest.raises(ValueError, match="x_train holds Python objects, which are never loaded") as error:
        load(tmp_path / "a.npz")
    assert "allow_pickle" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": frames(3)}, r"holds \['images'\]; expected x_train and x_test"),
        ({"x_train": frames(3)}, r"holds \['x_train'\]; expected"),
        ({"x_train": frames(3) / 255.0, "x_test": frames(3)}, "x_train must hold integer levels.*got float64"),
        ({"x_train": frames(3)[0], "x_test": frames(3)}, r"x_train must be \(N, H, W\).*got \(4, 5\)"),
        ({"x_train": np.zeros((3, 4, 4, 7), np.uint8), "x_test": frames(3)}, r"1 or 3 channels, got \(3, 4, 4, 7\)"),
        ({"x_train": frames(3), "x_test": frames(3, 6, 6)}, r"test must have images of the shape of train"),
        ({"x_train": frames(3), "x_test": frames(0)}, "test must hold at least one image"),
        ({"x_train": frames(1), "x_test": frames(1)}, "none is left for training"),
        ({"X": frames(2)}, "2 images, of which 2 were to be held out"),
        ({"train_bits": np.zeros((3, 97), np.uint8), "test_bits": np.zeros((3, 98), np.uint8)}, r"must be \(N, 98\)"),
        ({"x_train": frames(3), "x_test": frames(3), "num_levels": 17}, "num_levels is 17, but the images hold level"),
        ({"x_train": frames(3), "x_test": frames(3), "num_levels": 1000}, "num_levels must be an integer in 2..256"),
    ],
)
def test_unsuitable_npz_is_refused_with_what_it_holds(tmp_path: Path, arrays: dict, says: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refuse(tmp_path / "a.npz", says)


def test_unsuitable_idx_files_are_refused(tmp_path: Path) -> None:
    train, test = tmp_path / "train-images-idx3-ubyte", tmp_path / "t10k-images-idx3-ubyte"
    write_idx(train, frames(3))
    refuse(train, "no test images beside train-images-idx3-ubyte; expected one of t10k-images-idx3-ubyte")
    refuse(tmp_path, "no test images")
    whole = write_idx(test, frames(3)).read_bytes()
    for content, says in (
        (b"", "got an empty file"),
        (whole[:10], "is truncated: its header takes 16 bytes, got 10"),
        (whole[:-1], "is truncated: images .* take 76 bytes, got 75"),
        (whole + b"\0", "is too long"),
        (b"\x89PNG" + whole, "magic number"),
        (b"\0\0\x08\x01" + whole[4:], "magic number .* these are labels"),
        (b"\0\0\x0d\x03" + whole[4:], "unsigned bytes"),
        (b"\0\0\x08\x03" + bytes(12), "is empty"),
        (gzip.compress(whole)[:-9], "cannot be read"),
    ):
        test.write_bytes(content)
        with pytest.raises(ValueError, match=says) as error:
            load(train)
        assert test.name in str(error.value)


def test_folder_without_images_and_unnamed_files_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path, "no file with train-images in its name")
    (tmp_path / "photo.jpg").write_bytes(b"123")
    refuse(tmp_path / "photo.jpg", "not named as training images")


def test_other_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="source must be 'digits' or a path, got int"):
        load(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got an empty string"):
        load("")
    with pytest.raises(ValueError, match="num_valid must be at least 1, got 0"):
        load("digits", num_valid=0)
    with pytest.raises(ValueError, match="none is left for training"):
        load("digits", num_valid=1700)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        load("digits", seed=-1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": torch.zeros(2, 1, 3, 3)}, r"train must be \(N, C, H, W\) uint8 levels, got .* torch.float32"),
        ({"test": torch.zeros(2, 3, 3, dtype=torch.uint8)}, "test must be"),
        ({"valid": torch.full((2, 1, 3, 3), 4, dtype=torch.uint8)}, r"valid must hold levels 0..3, got 4"),
        ({"num_levels": 1}, "2 to 256 levels, got 1"),
    ],
)
def test_data_checks_its_sets(change: dict, says: str) -> None:
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=says):
        Data(
            **{"name": "a", "protocol": "b", "num_levels": 4, "train": images, "valid": images, "test": images} | change
        )
