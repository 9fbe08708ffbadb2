"""The table of launches: a row for every layer, blocks that fit it, kernels only where measured fastest."""

from dataclasses import replace

import pytest
import torch
from fastvae_kernels import masked_conv2d_config as config

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
        config.choose_config("conv", arch, torch.bfloat16, 10_000, 128, 128, flat=False) for arch in (80, 90)
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
