"""The CPU kernels against the plain modules in double precision: outputs, gradients, running statistics.

The tests of single modules run with the kernels compiled for each instruction set that this processor has.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import googlenet
from googlenet import kernels
from googlenet.kernels import build, conv_bn_relu, ffi, levels
from googlenet.kernels.conv_bn_relu import (
    as_map,
    as_matrix,
    convolve,
    convolve_backward,
    dense_weight,
    im2col,
    norm_relu,
    norm_relu_backward,
)
from googlenet.models.googlenet import TABLE_1, Inception, InceptionRow, scale_channels
from googlenet.models.init import init_weights
from googlenet.models.layers import Conv, ConvNormAct, MaxPool
from googlenet.models.registry import MODELS
from model_selection import LARGEST, mark_slow_models
from rounding import assert_rounding

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(kernels.load_kernels() is None, reason="GOOGLENET_NATIVE=0, or no C compiler with OpenMP"),
]

ROW = InceptionRow(24, 16, 48, 8, 16, 40)


@pytest.fixture(params=mark_slow_models(build.LEVELS, ("native", "avx2")))
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Use the kernels of each level in turn; for "native", those of the level in GOOGLENET_NATIVE, if it is set."""
    if missing := build.missing_features(request.param):
        pytest.skip(f"this processor has no {', '.join(missing)}")
    if request.param != "native":
        monkeypatch.setenv(build.ENV_VARIABLE, request.param)
    kernels.load_kernels.cache_clear()
    assert kernels.load_kernels() is not None
    yield request.param
    kernels.load_kernels.cache_clear()


def test_another_level_calls_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are looked up once, but for each library."""
    called: list[str] = []

    class Library:
        def __init__(self, name: str):
            self.name = name

        def __getitem__(self, _: str) -> Callable[..., None]:
            return lambda *_: called.append(self.name)

    for library in (Library("first"), Library("second"), Library("second")):
        monkeypatch.setattr(ffi, "load_kernels", lambda library=library: library)
        ffi.call_function("step", 1, 2.0)
    assert called == ["first", "second", "second"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Fix the seed: in rare draws a value is so close to zero that rounding changes its ReLU."""
    torch.manual_seed(0)


def assert_close(result: Tensor, exact: Tensor, tolerance: float = 1e-4) -> None:
    """Check the error relative to the largest value.

    In 3,072 comparisons at all levels the largest error is 1e-5, the median 1e-7; a wrong term gives at least 1e-2.
    """
    scale = max(exact.abs().max().item(), 1e-12)
    torch.testing.assert_close(result.double() / scale, exact.double() / scale, rtol=0, atol=tolerance)


def avoid_zeros(module: nn.Module, x: Tensor) -> None:
    """Shift the biases so that no ReLU has an input near zero: rounding then changes none, on any processor.

    Zero is moved to the middle of the widest gap between the inner half of a channel's values.
    """
    exact = copy.deepcopy(module).double().train()
    outputs: list[Tensor] = []
    # Units are registered in the order in which they compute.
    for exact_unit, unit in zip(units(exact), units(module), strict=True):
        handle = exact_unit.norm.register_forward_hook(lambda _, __, out: outputs.append(out))
        exact(x.double())
        handle.remove()
        values = outputs.pop().transpose(0, 1).flatten(1).sort(1).values
        quarter = values.shape[1] // 4
        inner = values[:, quarter : values.shape[1] - quarter]
        gaps = inner.diff(dim=1)
        widest = gaps.argmax(1, keepdim=True)
        middle = (inner.gather(1, widest) + gaps.gather(1, widest) / 2).flatten()
        with torch.no_grad():
            for each in (exact_unit, unit):
                bias = each.conv.bias if isinstance(each.norm, nn.Identity) else each.norm.bias
                bias -= middle


def units(module: nn.Module) -> list[ConvNormAct]:
    return [child for child in module.modules() if isinstance(child, ConvNormAct)]


def compare(module: nn.Module, x: Tensor, seed: int = 0) -> None:
    """Compare a forward and backward pass with plain PyTorch in double precision."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.uniform_(-0.3, 1.2)
    avoid_zeros(module, x)
    fast, plain = copy.deepcopy(module), copy.deepcopy(module).double()
    assert kernels.enable_cpu_kernels(fast)
    x, exact_x = x.clone().requires_grad_(), x.double().requires_grad_()
    out, exact = fast.train()(x), plain.train()(exact_x)
    assert out.grad_fn.name().startswith("_"), "the kernels ran"
    assert out.shape == exact.shape
    assert_close(out, exact)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    (out * weights).sum().backward()
    (exact * weights.double()).sum().backward()
    assert_close(x.grad, exact_x.grad)
    for (name, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None, name
        assert_close(p.grad, q.grad)
    for p, q in zip(fast.buffers(), plain.buffers(), strict=True):
        assert_close(p, q, 1e-5)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 3), (3, 2), (3, 3), (4, 4), (7, 7), (12, 9), (40, 40)])
def test_inception_block(shape: tuple[int, int], norm: str) -> None:
    block = Inception(32, ROW, norm)
    init_weights(block, "kaiming", seed=1)
    compare(block, torch.randn(8, 32, *shape))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(
    ("in_channels", "conv"),
    [(1, Conv(64, 7, 2)), (3, Conv(64, 7, 2)), (64, Conv(64)), (64, Conv(96, 3)), (16, Conv(8, 5))],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 2, 5, 14, 28])
def test_conv_norm_act(size: int, in_channels: int, conv: Conv, norm: str) -> None:
    unit = ConvNormAct(in_channels, conv, norm)
    init_weights(unit, "kaiming", seed=2)
    compare(unit, torch.randn(6, in_channels, size, size))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(("stride", "padding", "ceil"), [(1, 1, False), (2, 1, False), (2, 0, True)])
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (4, 7), (8, 8), (15, 14)])
def test_max_pool_is_exact_including_ties(shape: tuple[int, int], stride: int, padding: int, ceil: bool) -> None:
    pool = MaxPool(stride, padding, ceil)
    assert kernels.enable_cpu_kernels(pool)
    for x in (torch.randn(3, 32, *shape), torch.randint(0, 2, (3, 32, *shape)).float(), torch.zeros(3, 32, *shape)):
        fast_x, plain_x = (x.clone().requires_grad_() for _ in range(2))
        out = pool.train()(fast_x)
        expected = F.max_pool2d(plain_x, 3, stride, padding, ceil_mode=ceil)
        assert out.grad_fn.name() == "_MaxPoolBackward"
        assert torch.equal(out, expected)
        weights = torch.randint(1, 9, out.shape).float()
        (out * weights).sum().backward()
        (expected * weights).sum().backward()
        assert torch.equal(fast_x.grad, plain_x.grad), "the first of equal maxima gets the gradient"


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_nan_propagates(norm: str) -> None:
    x = torch.randn(2, 32, 6, 6)
    x[0, 3, 2, 2] = float("nan")
    for plain in (MaxPool(2, 1), ConvNormAct(32, Conv(16), norm), Inception(32, ROW, norm)):
        fast = copy.deepcopy(plain)
        kernels.enable_cpu_kernels(fast)
        result, expected = fast(x).isnan(), plain(x).isnan()
        assert expected.any()
        if isinstance(plain, Inception):  # in Winograd's algorithm NaN spreads over a tile
            assert result[expected].all()
            assert not result[1].any() or norm == "batch"
        else:
            assert torch.equal(result, expected)


@pytest.mark.parametrize("name", mark_slow_models(googlenet.list_models(), release=LARGEST))
@pytest.mark.parametrize("extra", [0, 13])
def test_network(name: str, extra: int) -> None:
    """Outputs only: rounding that changes one ReLU changes single gradients by much more than 1e-4."""
    size = max(MODELS[name].min_size, 32) + extra
    torch.manual_seed(size)
    plain = googlenet.create(name, 10, 1, aux=bool(MODELS[name].aux_heads), dropout=0.0).double().train()
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fast = copy.deepcopy(plain).float()
    kernels.enable_cpu_kernels(fast)
    x = torch.randn(16, 1, size, size)
    single = copy.deepcopy(plain).float()
    outputs = fast.forward_aux(x), single.forward_aux(x), plain.forward_aux(x.double())
    # On maps of one pixel the deepest models normalize 16 values, which amplifies PyTorch's rounding as well.
    for result, reference, exact in zip(*((out.logits, *out.aux_logits) for out in outputs), strict=True):
        assert_rounding(result, reference, exact)
    assert fast.state_dict().keys() == plain.state_dict().keys(), "the keys of checkpoints are the same"


def error(result: Tensor, exact: Tensor) -> float:
    return ((result.double() - exact).norm() / exact.norm()).item()


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (1, 1, 1, 1), (3, 1, 7, 9), (2, 3, 9, 8), (2, 32, 4, 4)], ids=str)
@pytest.mark.parametrize(("k", "stride"), [(3, 1), (5, 1), (7, 2)])
def test_im2col(k: int, stride: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    expected = F.unfold(x.float(), k, padding=k // 2, stride=stride).unflatten(1, (-1, k * k))
    expected = expected.permute(0, 3, 2, 1).flatten(0, 1).flatten(1)
    assert torch.equal(im2col(x, k, stride).float(), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_convolutions(data: st.DataObject) -> None:
    """Outputs and gradients of every algorithm against double precision, in both types, also as with AMX."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    k, stride = data.draw(st.sampled_from([(1, 1), (3, 1), (5, 1), (3, 2), (7, 2)]))
    amx = data.draw(st.booleans())
    in_channels, out_channels = data.draw(st.sampled_from([1, 3, 16, 32, 48])), data.draw(st.sampled_from([1, 16, 40]))
    side, images = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)

    x, weight = draw(images, in_channels, side, side), draw(out_channels, in_channels, k, k)
    exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.conv2d(exact_x, exact_weight, None, stride, k // 2)
    grad = draw(*expected.shape)
    expected.backward(grad.double())
    need_input_grad = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_bn_relu, "has_amx", lambda: amx)
        dense = dense_weight(weight, x) if stride == 1 else None
        out = convolve(x, weight, dense, None, stride)
        grad_input, grad_weight = convolve_backward(as_matrix(grad), x, weight, dense, stride, need_input_grad)
    # The result in bfloat16 has 8 significant bits; a dense weight's gradient is the sum of up to 9 of them.
    tolerance = 1e-4 if dtype == torch.float32 else 2**-6
    assert_close(as_map(out, expected), expected, tolerance)
    assert (grad_input is not None) == need_input_grad
    if grad_input is not None:
        assert_close(as_map(grad_input, x), exact_x.grad, tolerance)
    assert grad_weight.shape == weight.shape
    assert_close(grad_weight, exact_weight.grad, tolerance)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_bfloat16_is_as_accurate_as_pytorch(size: int, norm: str) -> None:
    """Outputs and gradients under autocast, with and without kernels, against double precision.

    The ratio of the two errors is 0.8 to 1.01 at all levels and with PyTorch limited to AVX2.
    """
    plain = nn.Sequential(ConvNormAct(32, Conv(32, 3), norm), Inception(32, ROW, norm), MaxPool(1, 1)).train()
    for seed, unit in enumerate(units(plain)):
        init_weights(unit, "kaiming", seed)
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    kernels.enable_cpu_kernels(fast)
    x = torch.randn(16, 32, size, size)
    with torch.autocast("cpu", torch.bfloat16):
        result, reference = fast(x), plain(x)
    expected = exact(x.double())
    assert result.dtype == reference.dtype == torch.bfloat16
    assert result.grad_fn.name() == "_MaxPoolBackward"
    assert error(result, expected) < 1.2 * error(reference, expected)
    weights = torch.randn_like(expected)
    (result.float() * weights).sum().backward()
    (reference.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    errors = [
        (error(p.grad, r.grad), error(q.grad, r.grad))
        for p, q, r in zip(fast.parameters(), plain.parameters(), exact.parameters(), strict=True)
    ]
    assert all(p.grad.dtype == torch.float32 for p in fast.parameters())
    assert sum(a for a, _ in errors) < 1.2 * sum(b for _, b in errors)


def test_only_training_in_float32_and_bfloat16_is_supported() -> None:
    unit = ConvNormAct(3, Conv(16, 3))
    kernels.enable_cpu_kernels(unit)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)

    def uses_kernels(module: nn.Module, x: Tensor) -> bool:
        grad_fn = module(x).grad_fn
        return grad_fn is not None and grad_fn.name() == "_ConvNormActBackward"

    assert uses_kernels(unit, x)
    assert not uses_kernels(copy.deepcopy(unit).double(), x.double())
    assert not uses_kernels(copy.deepcopy(unit).eval(), x)
    with torch.no_grad():
        assert not uses_kernels(unit, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert uses_kernels(unit, x)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not uses_kernels(unit, x)


@pytest.mark.usefixtures("level")
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    """For the kernels; the matrix products are the library's."""
    num_threads, results = torch.get_num_threads(), []
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(5000, 48, generator=generator), torch.randn(5000, 48, generator=generator)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)  # also sets OpenMP's, which the kernels use
            norm = nn.BatchNorm2d(48)
            out = torch.empty(5000, 48)
            stats = norm_relu(x, [norm], norm.weight.detach(), norm.bias.detach(), [out])
            results.append([out, stats, *norm.buffers(), *norm_relu_backward([g], x, stats, [out])])
    finally:
        torch.set_num_threads(num_threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


WIDE_ROWS = {
    "merged": InceptionRow(1024, 1008, 16, 32, 16, 16),
    "3x3": InceptionRow(16, 16, 2064, 16, 16, 16),
    "5x5": InceptionRow(16, 16, 16, 16, 4096, 16),
    "projection": InceptionRow(16, 16, 16, 16, 16, 2064),
}


@pytest.mark.parametrize("row", WIDE_ROWS.values(), ids=WIDE_ROWS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_blocks_with_too_many_channels_use_the_plain_modules(norm: str, row: InceptionRow) -> None:
    """The kernels have buffers for 2,048 channels in each convolution of a block."""
    block = Inception(16, row, norm).train()
    kernels.enable_cpu_kernels(block)
    assert block(torch.randn(2, 16, 2, 2)).grad_fn.name() == "CatBackward0"


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(("name", "width_mult"), [("inception_3b", 8), ("inception_3a", 8), ("inception_3b", 7.1)])
def test_widest_blocks_equal_double_precision(name: str, width_mult: float) -> None:
    """Above a factor of 7.19 the merged 1x1 convolutions of 3b exceed the buffers; both sides of the bound work."""
    row = InceptionRow(*(scale_channels(channels, width_mult) for channels in TABLE_1[name]))
    in_channels = scale_channels(192 if name == "inception_3a" else 256, width_mult)
    block = Inception(in_channels, row, "batch")
    init_weights(block, "kaiming", seed=3)
    exact = copy.deepcopy(block).double().train()
    kernels.enable_cpu_kernels(block)
    x = torch.randn(5, in_channels, 2, 2)
    x, exact_x = x.requires_grad_(), x.double().detach().requires_grad_()
    out, expected = block.train()(x), exact(exact_x)
    merged = row.conv1x1 + row.reduce3x3 + row.reduce5x5
    assert (out.grad_fn.name() == "_InceptionBackward") == (merged <= levels.MAX_CHANNELS)
    assert_close(out, expected)
    for p, q in zip(block.buffers(), exact.buffers(), strict=True):
        assert_close(p, q, 1e-5)
    # A ReLU whose input is near zero may differ, and with it single elements of a gradient, but not its direction.
    out.square().sum().backward()
    expected.square().sum().backward()
    for p, q in ((x, exact_x), *zip(block.parameters(), exact.parameters(), strict=True)):
        assert F.cosine_similarity(p.grad.double().flatten(), q.grad.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("columns", [2049, 4096, 10_000])
def test_kernels_reject_more_columns_than_their_buffers(columns: int) -> None:
    norm, pre = nn.BatchNorm2d(columns), torch.zeros(2, columns)
    with pytest.raises(ValueError, match=f"support 2048 channels, not {columns}"):
        norm_relu(pre, [norm], norm.weight, norm.bias, [torch.empty_like(pre)])
    for stats in (None, torch.ones(4, columns)):
        with pytest.raises(ValueError, match=f"support 2048 channels, not {columns}"):
            norm_relu_backward([pre], pre, stats, [pre])


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_kernels_cannot_be_differentiated_twice(norm: str) -> None:
    """The kernels' results are constants for autograd, so a second derivative would be wrong."""
    for module in (MaxPool(2, 1), ConvNormAct(32, Conv(16), norm), Inception(32, ROW, norm)):
        assert kernels.enable_cpu_kernels(module)
        x = torch.randn(4, 32, 4, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(module.train()(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.square().sum().backward()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'warning: first' >&2; echo 'fatal error: omp.h not found' >&2; exit 1", "fatal error: omp.h not found"),
        ("echo 'unrecognized option -march' >&2; exit 4", "unrecognized option -march"),
        ("exit 7", "returned non-zero exit status 7."),
    ],
)
def test_the_error_of_the_compiler_is_logged_once(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reload_kernels: None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.delenv(build.ENV_VARIABLE, raising=False)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Libraries that other tests use change the levels of all loggers, or switch them off.
    caplog.set_level(logging.WARNING, "googlenet.kernels")
    monkeypatch.setattr(logging.getLogger("googlenet.kernels"), "disabled", False)
    for _ in range(3):
        assert not kernels.enable_cpu_kernels(ConvNormAct(1, Conv(1), "batch"))
    (record,) = caplog.records
    assert record.name == "googlenet.kernels" and "\n" not in record.message
    assert f"{compiler}: " in record.message and f"{reason} (" in record.message


@pytest.mark.parametrize("device", ["meta", "cuda", "mps"])
def test_other_devices_compile_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is asked before the library, which is compiled on its first use."""

    class Elsewhere:
        dtype, shape, is_contiguous = torch.float32, (2, 16, 4, 4), lambda *_, **__: True

    weight = Elsewhere()
    weight.device = torch.device(device)
    monkeypatch.setattr("googlenet.kernels.sgd.load_kernels", lambda: pytest.fail("compiled"))
    assert not kernels.is_supported_param(weight)
    assert not kernels.is_supported(weight)
    monkeypatch.setattr("ctypes.CDLL", lambda *_: pytest.fail("the allocator was changed"))
    kernels.keep_freed_memory(device)


def test_without_a_compiler_the_plain_modules_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reload_kernels: None
) -> None:
    for change in ({build.ENV_VARIABLE: "0"}, {"CC": "/no/such/compiler", "XDG_CACHE_HOME": str(tmp_path)}):
        with monkeypatch.context() as patched:
            patched.delenv(build.ENV_VARIABLE, raising=False)
            for name, value in change.items():
                patched.setenv(name, value)
            kernels.load_kernels.cache_clear()
            model = googlenet.create("googlenet_bn", 10, 1)
            assert not kernels.enable_cpu_kernels(model)
            out = model(torch.randn(4, 1, 64, 64))
            out.sum().backward()
            assert not any(getattr(module, "use_cpu_kernels", False) for module in model.modules())
            assert not list(tmp_path.rglob("*.so"))


@pytest.fixture
def reload_kernels() -> Iterator[None]:
    """Load the kernels again in the test, and after it."""
    kernels.load_kernels.cache_clear()
    yield
    kernels.load_kernels.cache_clear()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fast", "use 0, native, baseline, avx2, avx512"),
        ("avx512", "this processor lacks avx512vl, f16c; use native"),
    ],
)
def test_invalid_levels(setting: str, message: str, monkeypatch: pytest.MonkeyPatch, reload_kernels: None) -> None:
    monkeypatch.setenv(build.ENV_VARIABLE, setting)
    monkeypatch.setattr(build, "_processor", lambda: "flags : avx2 bmi2 fma avx512f avx512bw avx512cd avx512dq")
    with pytest.raises(ValueError, match=f"GOOGLENET_NATIVE={setting}: .*{message}") as raised:
        kernels.load_kernels()
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_compiles_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reload_kernels: None) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = []
    for _ in range(2):
        assert "kernels-" in str(kernels.load_kernels())
        kernels.load_kernels.cache_clear()
        (library,) = (tmp_path / "googlenet").iterdir()
        written.append(library.stat().st_mtime_ns)
    assert written[0] == written[1], "the second call loads the compiled library"
