"""One place decides which implementation runs; a forced one that cannot run says why."""

import concurrent.futures
import contextvars

import pytest
import torch

import fastvae
from fastvae.ops import _dispatch

X = torch.zeros(2)
# choose() asks a tensor for its device only
CUDA = type("Cuda", (), {"is_cuda": True, "device": torch.device("cuda")})()


def test_automatic_choice_is_torch_on_the_cpu_and_triton_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "HAS_TRITON", True)
    assert _dispatch.choose(X) == "torch"
    assert _dispatch.choose(CUDA, CUDA) == "triton"
    assert _dispatch.choose(CUDA, X) == "torch"
    assert _dispatch.choose(CUDA, unsupported="float64") == "torch"


def test_kernels_that_are_not_the_fastest_run_only_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "HAS_TRITON", True)
    assert _dispatch.choose(CUDA, preferred=False) == "torch"
    with fastvae.backend("triton"):
        assert _dispatch.choose(CUDA, preferred=False) == "triton"


def test_without_triton_cuda_runs_on_torch_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "HAS_TRITON", False)
    with pytest.warns(UserWarning, match="slower here: the package triton is not installed"):
        assert _dispatch.choose(CUDA) == "torch"
    with fastvae.backend("triton"), pytest.raises(RuntimeError, match="triton is not installed"):
        _dispatch.choose(CUDA)


def test_forced_kernels_say_why_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "HAS_TRITON", True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with fastvae.backend("triton"):
        with pytest.raises(RuntimeError, match="'triton' is forced but cannot run: it needs CUDA tensors, got cpu"):
            _dispatch.choose(X)
        with pytest.raises(RuntimeError, match="forced but cannot run: float64 is not served"):
            _dispatch.choose(CUDA, unsupported="float64 is not served")


def test_the_interpreter_lets_forced_kernels_take_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "HAS_TRITON", True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _dispatch.choose(X) == "torch"  # it is slow: never chosen
    with fastvae.backend("triton"):
        assert _dispatch.choose(X) == "triton"


def test_blocks_nest_and_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVAE_BACKEND", "reference")
    assert _dispatch.choose(X) == "reference"
    with fastvae.backend("torch"):
        assert _dispatch.choose(X) == "torch"
        with fastvae.backend("reference"):
            assert _dispatch.choose(X) == "reference"
        assert _dispatch.choose(X) == "torch"
        with pytest.raises(ZeroDivisionError), fastvae.backend("reference"):
            raise ZeroDivisionError
        assert _dispatch.choose(X) == "torch"
    assert _dispatch.choose(X) == "reference"


def test_a_block_holds_for_its_own_thread_alone() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool, fastvae.backend("reference"):
        assert pool.submit(_dispatch.choose, X).result() == "torch"
        assert pool.submit(contextvars.copy_context().run, _dispatch.choose, X).result() == "reference"


def test_unknown_names_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'cuda'"), fastvae.backend("cuda"):
        pass
    monkeypatch.setenv("FASTVAE_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"FASTVAE_BACKEND must be one of .* got 'fast'"):
        _dispatch.choose(X)


def test_transforms_and_forward_mode_need_the_definition() -> None:
    seen: list[bool] = []

    def record(x: torch.Tensor) -> torch.Tensor:
        seen.append(_dispatch.must_use_definition(x))
        return x.sum()

    record(X)
    torch.func.grad(record)(X)
    torch.func.jvp(record, (X,), (X,))
    torch.func.vmap(record)(torch.zeros(2, 3))
    with torch.autograd.forward_ad.dual_level():
        record(X)
    with fastvae.backend("reference"):
        record(X)
    record(X)
    assert seen == [False, True, True, True, True, True, False]


def test_a_compiler_traces_through_the_choice() -> None:
    def double_or_negate(x: torch.Tensor) -> torch.Tensor:
        return 2 * x if _dispatch.choose(x) == "torch" else -x

    ones = torch.ones(2)
    compiled = torch.compile(double_or_negate, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ones), 2 * ones)
    torch.compiler.reset()
    with fastvae.backend("reference"):
        torch.testing.assert_close(compiled(ones), -ones)


def test_an_empty_variable_forces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVAE_BACKEND", "")
    assert _dispatch.choose(torch.zeros(1)) == "torch"
