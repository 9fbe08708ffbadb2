"""The table of launches: a row for every layer, blocks that fit it, kernels only where measured fastest."""

from dataclasses import replace

import pytest
import torch
from fastvae_kernels import masked_conv2d_config as config
from hypothesis import example, given
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arch", [None, 80, 86, 90, 100, 120])
@pytest.mark.parametrize("op", ["conv", "block", "grad_weight"])
def test_every_layer_finds_a_row_whose_blocks_fit(op: config.Op, arch: int | None, dtype: torch.dtype) -> None:
    for channels in (1, 3, 15, 16, 17, 64, 65, 120, 500):
        flat = config.is_flat(channels)
        row = config.choose_config(op, arch, dtype, 10_000, channels, 25 * channels, flat=flat)
        for block, size in ((row.block_m, 10_000), (row.block_n, channels), (row.block_k, 25 * channels)):
            assert block >= 16
            assert block & (block - 1) == 0  # a power of two
            assert block == 16 or block < 2 * size


def test_an_architecture_with_a_row_of_its_own_uses_it() -> None:
    default, own = (
        config.choose_config("conv", arch, torch.bfloat16, 1_000_000, 128, 128, flat=False) for arch in (80, 90)
    )
    assert default == config.TABLE["conv", None, torch.bfloat16, 128]
    assert own == config.TABLE["conv", 90, torch.bfloat16, 128]
    assert default != own


@pytest.mark.parametrize("ending", ["plain", "gated", "residual"])
def test_kernels_are_the_fastest_only_if_all_three_passes_were_measured_to_be(
    monkeypatch: pytest.MonkeyPatch, ending: config.Ending
) -> None:
    forward = "conv" if ending == "plain" else "block"
    buckets = [(forward, 128), ("conv", 64), ("grad_weight", 64)]  # of 64 input and 128 output channels
    keys = [(op, 75, torch.float16, bucket) for op, bucket in buckets]
    table = dict(config.TABLE)
    monkeypatch.setattr(config, "TABLE", table)
    for key in keys:
        assert not config.is_fastest((7, 5), torch.float16, 64, 128, ending)
        table[key] = replace(table["conv", None, torch.float16, 64], fastest=frozenset({ending}))
    assert config.is_fastest((7, 5), torch.float16, 64, 128, ending)
    assert sum(config.is_fastest((7, 5), torch.float16, 64, 128, e) for e in ("plain", "gated", "residual")) == 1
    assert not config.is_fastest((7, 5), torch.bfloat16, 64, 128, ending)
    assert not config.is_fastest((8, 0), torch.float16, 64, 128, ending)


def test_few_pixels_are_divided_among_more_programs() -> None:
    def block(num_pixels: int, channels: int = 64) -> int:
        return config.choose_config("conv", 90, torch.bfloat16, num_pixels, channels, 64, flat=False).block_m

    assert block(256 * 28 * 28) == 128
    assert block(16 * 28 * 28) == 64
    assert block(16 * 28 * 28, 512) == 128  # enough tiles of channels


@given(n=st.integers(0, 2**31 - 1), size=st.integers(1, 2**31 - 1))
@example(n=2**31 - 1, size=1)
@example(n=2**31 - 1, size=2**31 - 1)
@example(n=2**31 - 2, size=2**31 - 1)
@example(n=2**31 - 1, size=2**30 + 1)
@example(n=783, size=784)
def test_division_by_multiplication_is_exact(n: int, size: int) -> None:
    places = pytest.importorskip("fastvae_kernels.masked_conv2d_places", reason="needs triton")
    factor, shift = places.divisors_of(1, size)["width_factor"], places.divisors_of(1, size)["width_shift"]
    assert factor < 2**32
    assert (2 * n * factor >> 32) >> shift == n // size
    origin = places.divisors_of(1, size)["origin_factor"]
    assert origin < 2**63
    assert (2 * n * origin >> 64) in (n // size, n // size - (size == 1))
