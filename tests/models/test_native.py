"""The native training step against the plain modules in double precision: outputs, gradients, running statistics.

Each comparison of single parts runs with the kernels compiled for every level that this processor has: for its own
instructions, and for those of smaller ones.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import googlenet
from googlenet.models import native
from googlenet.models.catalogue import MODELS
from googlenet.models.googlenet import Inception, InceptionRow
from googlenet.models.layers import ConvUnit, MaxPool, initialise
from googlenet.models.native import build
from googlenet.models.native.passes import activate_backward, normalise
from members import quickly
from rounding import assert_rounding

# PyTorch's own code serves where no kernel can be compiled; then there is nothing native to test.
pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(native.kernels() is None, reason="GOOGLENET_NATIVE=0, or no C compiler with OpenMP"),
]

ROW = InceptionRow(24, 16, 48, 8, 16, 40)


@pytest.fixture(params=quickly(build.LEVELS, ("native", "avx2")))
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Use the kernels that are compiled for the instructions of each level in turn.

    In place of "native" the level that GOOGLENET_NATIVE names, where it is set.
    """
    if missing := build.missing_features(request.param):
        pytest.skip(f"this processor has no {', '.join(missing)}")
    if request.param != "native":
        monkeypatch.setenv(build.VARIABLE, request.param)
    native.kernels.cache_clear()
    assert native.kernels() is not None
    yield request.param
    native.kernels.cache_clear()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Rarely, a draw puts a number so near zero that rounding tips its ReLU."""
    torch.manual_seed(0)


def close(mine: Tensor, exact: Tensor, tolerance: float = 1e-4) -> None:
    """Of the largest number, 1e-4: the largest error of 3,072 comparisons, at all levels, is 1e-5, their median
    1e-7; a wrong term is 1e-2 at least."""
    scale = max(exact.abs().max().item(), 1e-12)
    torch.testing.assert_close(mine.double() / scale, exact.double() / scale, rtol=0, atol=tolerance)


def keep_from_kinks(module: nn.Module, x: Tensor) -> None:
    """Shift the biases so that no ReLU has an input near zero: rounding then tips none of them, on any processor.

    Zero goes into the middle of the widest gap between the inner half of a channel's values.
    """
    exact = copy.deepcopy(module).double().train()
    seen: list[Tensor] = []
    # Units are registered in the order in which they compute.
    for unit, own in zip(units(exact), units(module), strict=True):
        handle = unit.norm.register_forward_hook(lambda _, __, out: seen.append(out))
        exact(x.double())
        handle.remove()
        values = seen.pop().transpose(0, 1).flatten(1).sort(1).values
        quarter = values.shape[1] // 4
        inner = values[:, quarter : values.shape[1] - quarter]
        gaps = inner.diff(dim=1)
        widest = gaps.argmax(1, keepdim=True)
        middle = (inner.gather(1, widest) + gaps.gather(1, widest) / 2).flatten()
        with torch.no_grad():
            for one in (unit, own):
                bias = one.conv.bias if isinstance(one.norm, nn.Identity) else one.norm.bias
                bias -= middle


def units(module: nn.Module) -> list[ConvUnit]:
    return [one for one in module.modules() if isinstance(one, ConvUnit)]


def compare(module: nn.Module, x: Tensor, seed: int = 0) -> None:
    """One forward and backward pass, natively and as plain PyTorch in double precision."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.uniform_(-0.3, 1.2)
    keep_from_kinks(module, x)
    fast, plain = copy.deepcopy(module), copy.deepcopy(module).double()
    assert native.enable(fast)
    mine, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    out, truth = fast.train()(mine), plain.train()(exact)
    assert out.grad_fn.name().startswith("_"), "the native function ran"
    assert out.shape == truth.shape
    close(out, truth)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    (out * weights).sum().backward()
    (truth * weights.double()).sum().backward()
    close(mine.grad, exact.grad)
    for (name, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None, name
        close(p.grad, q.grad)
    for p, q in zip(fast.buffers(), plain.buffers(), strict=True):
        close(p, q, 1e-5)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 3), (3, 2), (3, 3), (4, 4), (7, 7), (12, 9), (40, 40)])
def test_inception_block(shape: tuple[int, int], norm: str) -> None:
    block = Inception(32, ROW, norm)
    initialise(block, "kaiming", seed=1)
    compare(block, torch.randn(8, 32, *shape))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(
    ("into", "out", "kernel", "stride"), [(1, 64, 7, 2), (3, 64, 7, 2), (64, 64, 1, 1), (64, 96, 3, 1), (16, 8, 5, 1)]
)
@pytest.mark.parametrize("size", [1, 2, 5, 14, 28])
def test_conv_unit(size: int, into: int, out: int, kernel: int, stride: int, norm: str) -> None:
    unit = ConvUnit(into, out, kernel, stride, norm=norm)
    initialise(unit, "kaiming", seed=2)
    compare(unit, torch.randn(6, into, size, size))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(("stride", "padding", "ceil"), [(1, 1, False), (2, 1, False), (2, 0, True)])
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (4, 7), (8, 8), (15, 14)])
def test_max_pool_is_exact_ties_included(shape: tuple[int, int], stride: int, padding: int, ceil: bool) -> None:
    pool = MaxPool(stride, padding, ceil)
    assert native.enable(pool)
    for x in (torch.randn(3, 32, *shape), torch.randint(0, 2, (3, 32, *shape)).float(), torch.zeros(3, 32, *shape)):
        mine, exact = (x.clone().requires_grad_() for _ in range(2))
        out = pool.train()(mine)
        truth = F.max_pool2d(exact, 3, stride, padding, ceil_mode=ceil)
        assert out.grad_fn.name() == "_MaxPoolBackward"
        assert torch.equal(out, truth)
        weights = torch.randint(1, 9, out.shape).float()
        (out * weights).sum().backward()
        (truth * weights).sum().backward()
        assert torch.equal(mine.grad, exact.grad), "the first of equal maxima gets the gradient"


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_nan_is_not_lost(norm: str) -> None:
    x = torch.randn(2, 32, 6, 6)
    x[0, 3, 2, 2] = float("nan")
    for plain in (MaxPool(2, 1), ConvUnit(32, 16, 1, norm=norm), Inception(32, ROW, norm)):
        fast = copy.deepcopy(plain)
        native.enable(fast)
        mine, theirs = fast(x).isnan(), plain(x).isnan()
        assert theirs.any()
        if isinstance(plain, Inception):  # its 3x3 goes by tiles, and a NaN reaches all of its tile
            assert mine[theirs].all()
            assert not mine[1].any() or norm == "batch"
        else:
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", quickly(googlenet.list_models()))
@pytest.mark.parametrize("more", [0, 13])
def test_whole_network(name: str, more: int) -> None:
    """Outputs only: a rounding that tips one ReLU moves single gradients far more than 1e-4, in PyTorch alone too."""
    size = max(MODELS[name].min_size, 32) + more
    torch.manual_seed(size)
    plain = googlenet.create(name, 10, 1, aux=bool(MODELS[name].aux_heads), dropout=0.0).double().train()
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fast = copy.deepcopy(plain).float()
    native.enable(fast)
    x = torch.randn(16, 1, size, size)
    single = copy.deepcopy(plain).float()
    mine, exact, theirs = fast.forward_aux(x), plain.forward_aux(x.double()), single.forward_aux(x)
    # On maps of one pixel the deepest members normalise over 16 numbers, and magnify PyTorch's rounding as well.
    for a, b, c in zip((mine.main, *mine.aux), (exact.main, *exact.aux), (theirs.main, *theirs.aux), strict=True):
        assert_rounding(a, c, b)
    assert fast.state_dict().keys() == plain.state_dict().keys(), "checkpoints keep the standard keys"


def error(mine: Tensor, exact: Tensor) -> float:
    return ((mine.double() - exact).norm() / exact.norm()).item()


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("side", [1, 2, 4, 9])
def test_bfloat16_errs_no_more_than_pytorchs_own(side: int, norm: str) -> None:
    """Outputs and gradients under autocast, native and plain, each against double precision.

    The ratio of the two errors is 0.8 to 1.01 at all levels and with PyTorch limited to AVX2; 1.2 is its bound.
    """
    plain = nn.Sequential(ConvUnit(32, 32, 3, norm=norm), Inception(32, ROW, norm), MaxPool(1, 1)).train()
    for number, unit in enumerate(m for m in plain.modules() if isinstance(m, ConvUnit)):
        initialise(unit, "kaiming", seed=number)
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    native.enable(fast)
    x = torch.randn(16, 32, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = fast(x), plain(x)
    truth = exact(x.double())
    assert mine.dtype == theirs.dtype == torch.bfloat16
    assert mine.grad_fn.name() == "_MaxPoolBackward"
    assert error(mine, truth) < 1.2 * error(theirs, truth)
    weights = torch.randn_like(truth)
    (mine.float() * weights).sum().backward()
    (theirs.float() * weights).sum().backward()
    (truth * weights).sum().backward()
    errors = [
        (error(p.grad, r.grad), error(q.grad, r.grad))
        for p, q, r in zip(fast.parameters(), plain.parameters(), exact.parameters(), strict=True)
    ]
    assert all(p.grad.dtype == torch.float32 for p in fast.parameters())
    assert sum(a for a, _ in errors) < 1.2 * sum(b for _, b in errors)


def test_only_training_in_floats_on_the_cpu_comes_here() -> None:
    unit = ConvUnit(3, 16, 3)
    native.enable(unit)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)

    def ran_natively(module: nn.Module, x: Tensor) -> bool:
        grad_fn = module(x).grad_fn
        return grad_fn is not None and grad_fn.name() == "_ConvUnitBackward"

    assert ran_natively(unit, x)
    assert not ran_natively(copy.deepcopy(unit).double(), x.double())
    assert not ran_natively(copy.deepcopy(unit).eval(), x)
    with torch.no_grad():
        assert not ran_natively(unit, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ran_natively(unit, x)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not ran_natively(unit, x)


@pytest.mark.usefixtures("level")
def test_bits_do_not_depend_on_the_threads() -> None:
    """Our own passes; the products are the library's."""
    before, results = torch.get_num_threads(), []
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(5000, 48, generator=generator), torch.randn(5000, 48, generator=generator)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)  # OpenMP's, ours too
            norm = nn.BatchNorm2d(48)
            found = normalise(x, [norm], norm.weight.detach(), norm.bias.detach())
            results.append([*found, *activate_backward([g], x, found, [torch.empty(5000, 48)])])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_without_a_compiler_the_plain_modules_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels_anew: None
) -> None:
    for change in ({build.VARIABLE: "0"}, {"CC": "/no/such/compiler", "XDG_CACHE_HOME": str(tmp_path)}):
        with monkeypatch.context() as patched:
            patched.delenv(build.VARIABLE, raising=False)
            for name, value in change.items():
                patched.setenv(name, value)
            native.kernels.cache_clear()
            model = googlenet.create("googlenet_bn", 10, 1)
            assert not native.enable(model)
            out = model(torch.randn(4, 1, 64, 64))
            out.sum().backward()
            assert not any(getattr(module, "native", False) for module in model.modules())
            assert not list(tmp_path.rglob("*.so"))


@pytest.fixture
def kernels_anew() -> Iterator[None]:
    """Forget the kernels before and after."""
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("fast", "use 0, native, baseline, avx2, avx512"),
        ("avx512", "this processor has no avx512vl, f16c; use native"),
    ],
)
def test_wrong_levels_get_one_line(
    setting: str, said: str, monkeypatch: pytest.MonkeyPatch, kernels_anew: None
) -> None:
    monkeypatch.setenv(build.VARIABLE, setting)
    monkeypatch.setattr(build, "_processor", lambda: "flags : avx2 bmi2 fma avx512f avx512bw avx512cd avx512dq")
    with pytest.raises(ValueError, match=f"GOOGLENET_NATIVE={setting}: .*{said}") as raised:
        native.kernels()
    assert "\n" not in str(raised.value)


def test_compiles_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels_anew: None) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = []
    for _ in range(2):
        assert "kernels-" in str(native.kernels())
        native.kernels.cache_clear()
        (library,) = (tmp_path / "googlenet").iterdir()
        written.append(library.stat().st_mtime_ns)
    assert written[0] == written[1], "the second time it is only opened"
