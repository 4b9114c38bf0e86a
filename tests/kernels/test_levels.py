"""The choice between the kernels in the wheel and compiled ones."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from googlenet import kernels
from googlenet.kernels import build, levels

pytestmark = pytest.mark.skipif(
    kernels.load_kernels() is None, reason="GOOGLENET_NATIVE=0, or no C compiler with OpenMP"
)

AVX2 = "flags : avx2 bmi2 f16c fma"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture(scope="module")
def compiled() -> Path:
    """The library for this processor, to copy: compiling another one takes seconds."""
    library = kernels.load_kernels()
    assert library is not None
    return Path(library._name)


@pytest.fixture
def prebuilt(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of prebuilt libraries, no setting of the level, and an empty cache."""
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    monkeypatch.setattr(levels, "PREBUILT_FOLDER", folder)
    monkeypatch.delenv(build.ENV_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels.load_kernels.cache_clear()
    yield folder
    kernels.load_kernels.cache_clear()


@pytest.mark.parametrize(
    ("contained", "processor", "level"),
    [
        ("avx2 avx512 avx512_bf16", f"{AVX512} avx512_bf16", "avx512_bf16"),
        ("avx2 avx512 avx512_bf16", AVX512, "avx512"),
        ("avx2 avx512 avx512_bf16", AVX2, "avx2"),
        ("avx2 avx512 avx512_bf16", "flags : sse2 avx", "native"),
        ("avx2", f"{AVX512} avx512_bf16", "avx2"),
        ("", AVX512, "native"),
    ],
)
def test_the_best_prebuilt_level_is_used(
    contained: str, processor: str, level: str, prebuilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_processor", lambda: processor)
    for name in contained.split():
        (prebuilt / f"{name}.so").touch()
    assert kernels.get_kernel_level() == level
    monkeypatch.setenv(build.ENV_VARIABLE, "native")
    assert kernels.get_kernel_level() == "native"


def test_prebuilt_kernels_need_no_compiler(prebuilt: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(compiled, prebuilt / "avx2.so")
    monkeypatch.setattr(build, "_processor", lambda: AVX2)
    monkeypatch.setattr(build, "find_compiler", lambda: pytest.fail("compiled"))
    library = kernels.load_kernels()
    assert library is not None
    assert library._name == str(prebuilt / "avx2.so")
    assert library.max_pool_forward_bfloat16


def test_unusable_prebuilt_kernels_are_reported_and_compiled(
    prebuilt: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (prebuilt / "avx2.so").write_bytes(b"truncated")
    monkeypatch.setattr(build, "_processor", lambda: AVX2)
    requested: list[str] = []

    def compile_kernels(compiler: list[str], level: str, library: Path) -> None:
        requested.append(level)
        library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(compiled, library)

    monkeypatch.setattr(build, "compile_kernels", compile_kernels)
    caplog.set_level(logging.WARNING, "googlenet.kernels")
    monkeypatch.setattr(logging.getLogger("googlenet.kernels"), "disabled", False)
    assert kernels.load_kernels() is not None
    assert requested == ["native"]
    (record,) = caplog.records
    assert "avx2.so" in record.message
