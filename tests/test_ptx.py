"""The interpreter of PTX, on kernels whose results are known: it must be right before it can prove anything."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from snn_rules.testing import nvrtc, ptx
from snn_rules.testing.memory import Memory, MemoryFault

try:
    nvrtc.architectures()
except (nvrtc.NoNvrtc, OSError) as cause:
    pytest.skip(f"NVRTC is needed: {cause}", allow_module_level=True)

INDEX = "const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;"


def run(body: str, signature: str, arguments: list[Any], threads: tuple[int, int] = (3, 32), options: tuple[str, ...] = nvrtc.OPTIONS) -> None:
    """Arrays are passed as pointers; other arguments as they are."""
    source = f'extern "C" __global__ void k({signature}) {{ {INDEX} {body} }}'
    arrays = {f"array {k}": value for k, value in enumerate(arguments) if isinstance(value, np.ndarray)}
    packed = [np.uint64(value.ctypes.data) if isinstance(value, np.ndarray) else value for value in arguments]
    for arch in (75, 120):
        entry = ptx.parse(nvrtc.ptx(source, arch, options))["k"]
        ptx.launch(entry, *threads, packed, Memory(arrays))


def floats(*values: float) -> Any:
    return np.resize(np.array(values, np.float32), 96)


def test_threads_that_branch_apart_meet_again() -> None:
    out = np.zeros(96, np.int64)
    run("long long n = i, k = 0; while (n > 1) { n = n % 2 ? 3 * n + 1 : n / 2; ++k; } o[i] = k * 1000 + i;", "long long* o", [out])

    def steps(n: int) -> int:
        return 0 if n <= 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    assert out.tolist() == [1000 * steps(i) + i for i in range(96)]


def test_denormal_numbers_are_flushed_where_the_options_say_so() -> None:
    x, flushed, kept = floats(1e-39, -1e-39, 1e-20, 3.0), floats(0), floats(0)
    run("o[i] = x[i] * 1.0f + (x[i] * x[i]);", "const float* x, float* o", [x, flushed])
    run("o[i] = x[i] * 1.0f + (x[i] * x[i]);", "const float* x, float* o", [x, kept], options=("--fmad=false",))
    assert flushed[:4].tolist() == [0.0, 0.0, np.float32(1e-20), 12.0]
    assert kept[:4].tolist() == [np.float32(1e-39), np.float32(-1e-39), np.float32(1e-20), 12.0]


def test_nan_and_infinity_take_the_side_that_c_says() -> None:
    x, o = floats(np.nan, np.inf, -np.inf, 0.5), floats(0)
    body = "float a = x[i]; o[i] = (a >= 0.f ? 1 : 0) + (a < 0.f ? 2 : 0) + (!(a < 0.f) ? 4 : 0) + (a != a ? 8 : 0) + (a == a ? 16 : 0);"
    run(body, "const float* x, float* o", [x, o])
    assert o[:4].tolist() == [4 + 8, 1 + 4 + 16, 2 + 16, 1 + 4 + 16]


def test_integers_floats_and_bits() -> None:
    x, o = floats(2.5, -2.5, 100.0, -7.0), floats(0)
    run("const int n = (int)x[i]; o[i] = (float)((n << 20 >> 18) ^ 5) + (float)((unsigned)n >> 31);", "const float* x, float* o", [x, o])
    assert o[:4].tolist() == [float((n << 2) ^ 5) + (n < 0) for n in (2, -2, 100, -7)]
    wide, out = np.arange(96, dtype=np.float64) / 7, np.zeros(96)
    run("o[i] = fabs(x[i] - 5.) / (1. + x[i]) + sqrt(x[i]);", "const double* x, double* o", [wide, out])
    assert np.array_equal(out, np.abs(wide - 5) / (1 + wide) + np.sqrt(wide))


def test_integers_are_divided_towards_zero() -> None:
    o = np.zeros((96, 4), np.int64)
    body = "if (n) { long long a = i - 40, *p = o + 4 * i; p[0] = a / n; p[1] = a % n; p[2] = (int)a / m; p[3] = (unsigned)i % (unsigned)m; }"
    run(body, "long long* o, long long n, int m", [o, np.int64(-7), np.int32(9)])
    want = [[int((i - 40) / -7), (i - 40) - int((i - 40) / -7) * -7, int((i - 40) / 9), i % 9] for i in range(96)]
    assert o.tolist() == want


def test_a_fused_multiply_add_is_rounded_once() -> None:
    draw = np.random.default_rng(0)
    a, b = (draw.normal(size=96).astype(np.float32) for _ in range(2))
    c, o = (-a * b).astype(np.float32), floats(0)  # what is left is the rounding error of the product
    a[0], b[0], c[0] = 1 + 2**-12, 1 + 2**-12, 2**-60  # float64 alone would round this sum twice
    run("o[i] = __fmaf_rn(x[i], y[i], z[i]);", "const float* x, const float* y, const float* z, float* o", [a, b, c, o])
    exact = [Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)) for p, q, r in zip(a, b, c, strict=True)]
    for value, wanted in zip(o, exact, strict=True):
        near = [np.nextafter(value, np.float32(side)) for side in (-np.inf, np.inf)]
        assert all(abs(Fraction(float(value)) - wanted) <= abs(Fraction(float(other)) - wanted) for other in near)
    assert o[0] == np.float32(1 + 2**-11 + 2**-23)


def test_vectors_are_loaded_and_stored() -> None:
    x, o = np.arange(384, dtype=np.float32), np.zeros(384, np.float32)
    body = "float4 v = ((const float4*)x)[i]; v.x += 1.f; v.w = v.y; ((float4*)o)[i] = v;"
    run(body, "const float* x, float* o", [x, o])
    wanted = x.reshape(-1, 4).copy()
    wanted[:, 0] += 1
    wanted[:, 3] = wanted[:, 1]
    assert np.array_equal(o.reshape(-1, 4), wanted)


@pytest.mark.parametrize(
    ("body", "options", "says"),
    [
        ("o[i] = (double)x[i] * x[i] + 1.;", ("-ftz=true",), "fused multiply-add of doubles"),
        ("o[i] = 1.f / (x[i] + 3.f);", ("--fmad=false", "--use_fast_math"), "not rounded to nearest"),
        ("o[i] = __expf(x[i]);", nvrtc.OPTIONS, "not rounded to nearest"),
        ("atomicAdd(o, x[i]);", nvrtc.OPTIONS, "does not know"),
        ("while (x[0] == x[0]) o[i] += 0.f;", nvrtc.OPTIONS, "does not end"),
    ],
)
def test_what_would_not_be_exact_is_refused(monkeypatch: pytest.MonkeyPatch, body: str, options: tuple[str, ...], says: str) -> None:
    monkeypatch.setattr(ptx, "MAX_STEPS", 1000)
    with pytest.raises(ptx.PtxError, match=says):
        run(body, "const float* x, float* o", [floats(1, 2), floats(0)], options=options)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("o[i / 2] = x[i];", r"race: thread \d+ writes what thread \d+ writes, word \d+ of 'array 1'"),
        ("o[i] = x[i]; o[0] = 1.f;", r"race: thread \d+ writes what thread \d+ writes, word 0 of 'array 1'"),
        ("o[i] = o[i ^ 1];", r"race: thread \d+ writes what thread \d+ reads"),
        ("o[i] = 1.f; o[i] += x[i] + o[95 - i];", r"race: thread \d+ reads what thread \d+ writes"),
        ("o[i + 1] = x[i];", r"thread 95 writes byte 384 of 'array 1', which has 384: out of bounds"),
        ("o[i] = x[i - 1];", r"thread 0 reads .*out of bounds"),
        ("o[i] = *(const float*)((const char*)x + 2 * (i % 2));", "thread 1 reads byte 2 of 'array 0', which has 384: misaligned"),
    ],
)
def test_memory_faults(body: str, says: str) -> None:
    with pytest.raises(MemoryFault, match=says):
        run(body, "const float* x, float* o", [floats(1, 2), floats(0)])


@pytest.mark.parametrize("given", [np.int32(96), np.float64(96), 96, np.float32(96)])
def test_arguments_of_the_wrong_width(given: Any) -> None:
    with pytest.raises(ptx.PtxError, match=r"parameter 'k_param_1' is \.u64, 8 bytes; it was given"):
        run("if (i < n) o[i] = 1.f;", "float* o, long long n", [floats(0), given])


def test_pointers_that_point_nowhere() -> None:
    with pytest.raises(MemoryFault, match="points at 0x3039, which is in no tensor"):
        run("o[i] = 1.f;", "float* o", [np.uint64(12345)])
    with pytest.raises(MemoryFault, match="a null pointer"):
        run("o[i] = 1.f;", "float* o", [np.uint64(0)])
