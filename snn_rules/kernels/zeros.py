"""The products of a layer of synapses that leave out the zeros of its input, in C++ for the CPU.

Forward, a thread takes a row of the input, lists its spikes and adds up their weights, a few vectors of neurons at a time, which stay in
registers. Backward, a thread owns some inputs and adds to the weights of each the gradients of the rows in which it spikes. Sums
go in the order of the inputs and of the rows, whatever the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .build import NoCompiler, build, say_once
from .prelude import prelude

PARALLEL = 65536  # inputs below which a second thread costs more than it gains
FEW = 1 / 8  # of an input; with more spikes, the dense product is as fast
LIST = """
static int spikes(const H* x, int64_t n, int32_t* at, H* raw, R* value) {  // where x is not zero, and what it is there: first as it lies in memory
  typedef std::conditional<sizeof(H) == 2, uint16_t, std::make_unsigned<I>::type>::type Bits;
  int count = 0;
  int64_t k = 0;
#if defined(__AVX512F__)
  if (sizeof(H) == 4) {  // sixteen at once
    typedef int32_t Lanes __attribute__((vector_size(64)));
    typedef int32_t Some __attribute__((vector_size(64), aligned(4), may_alias));
    Lanes place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (; k < n; k += 16, place += 16) {
      Lanes some, where; uint32_t mask = n - k < 16 ? (1u << (n - k)) - 1 : 0xffff;
      asm("kmovw %2, %%k1; vmovups %3, %1%{%%k1%}%{z%}; vcmpneqps %4, %1, %%k1%{%%k1%}; vpcompressd %5, %0%{%%k1%}%{z%}; "
          "vpcompressd %1, %1%{%%k1%}%{z%}; kmovw %%k1, %2"
          : "=&v"(where), "=&v"(some), "+r"(mask) : "m"(*(const Some*)(x + k)), "v"(K(0)), "v"(place) : "k1");
      memcpy(at + count, &where, sizeof where); memcpy(raw + count, &some, sizeof some);
      count += __builtin_popcount(mask);
    }
  }
#endif
#pragma GCC unroll 16
  for (; k < n; ++k) {
    Bits bits;
    memcpy(&bits, x + k, sizeof bits);
    at[count] = k; raw[count] = x[k]; count += (Bits)(bits << 1) != 0;
  }
  if (!std::is_same<H, R>::value) for (int k = 0; k < count; k += L) Quick::put(value + k, Quick::get(raw + k, L), L);
  return count;
}
struct List {
  int32_t* at; R* value; H* raw;
  explicit List(int64_t n) : at((int32_t*)malloc((n + 64) * 4)), value((R*)malloc((n + 64) * sizeof(R))) {
    raw = std::is_same<H, R>::value ? (H*)value : (H*)malloc((n + 64) * sizeof(H));
  }
  ~List() { if ((void*)raw != (void*)value) free(raw); free(value); free(at); }
  int of(const H* x, int64_t n) { return spikes(x, n, at, raw, value); }
};
static inline int64_t padded(int64_t out) { return (out + L - 1) / L * L; }
static inline void put(R* p, V v, int64_t n) { if (n >= L) Quick::put(p, v, L); else Part::put(p, v, n); }
static inline V get(const R* p, int64_t n) { return n >= L ? Quick::get(p, L) : Part::get(p, n); }
extern "C" void turn(void** p, int64_t, int64_t in, int64_t n, int threads) {  // the weights of an input next to each other
  const R* weight = (R*)p[0]; R* columns = (R*)p[1];
  const int64_t S = padded(n);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < in; ++i) for (int64_t j = 0; j < S; ++j) columns[i * S + j] = j < n ? weight[j * in + i] : 0;
}
"""
LINEAR = """
template <int NC> static void add(const List& list, int count, const R* columns, int64_t S, const R* bias, R* out, int64_t n) {
  V sum[NC];
#pragma GCC unroll 16
  for (int c = 0; c < NC; ++c) sum[c] = bias ? get(bias + c * L, n - c * L) : K(0);
  for (int k = 0; k < count; ++k) {
    const R* column = columns + list.at[k] * S;
    const V x = K(list.value[k]);
#pragma GCC unroll 16
    for (int c = 0; c < NC; ++c) sum[c] = fma_(x, Quick::get(column + c * L, L), sum[c]);
  }
#pragma GCC unroll 16
  for (int c = 0; c < NC; ++c) put(out + c * L, sum[c], n - c * L);
}
static void some(const H* x, const R* columns, const R* bias, R* out, int64_t s0, int64_t s1, int64_t in, int64_t n) {
  Flush flush; (void)flush;
  List list(in);
  const int64_t S = padded(n);
  for (int64_t s = s0; s < s1; ++s) {
    const int count = list.of(x + s * in, in);
    int64_t j = 0;
#define ADD(NC) for (; S - j >= NC * L; j += NC * L) add<NC>(list, count, columns + j, S, bias ? bias + j : nullptr, out + s * n + j, n - j);
    if (BYTES == 64) ADD(16)  // as many as there are registers
    ADD(8) ADD(4) ADD(2) ADD(1)
  }
}
extern "C" void forward(void** p, int64_t many, int64_t in, int64_t n, int threads) {
  const H* x = (H*)p[0]; const R *columns = (R*)p[1], *bias = (R*)p[2]; R* out = (R*)p[3];
  if (threads == 1) return some(x, columns, bias, out, 0, many, in, n);  // a team of one costs system calls
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int k = 0; k < threads; ++k) some(x, columns, bias, out, many * k / threads, many * (k + 1) / threads, in, n);
}
extern "C" void backward(void** p, int64_t many, int64_t in, int64_t n, int threads) {
  const H* x = (H*)p[0]; const R* g = (R*)p[1]; R *columns = (R*)p[2], *d_weight = (R*)p[3];
  const int64_t S = padded(n), whole = n / L * L;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int k = 0; k < threads; ++k) {
    Flush flush; (void)flush;
    const int64_t i0 = in * k / threads, i1 = in * (k + 1) / threads;
    List list(i1 - i0);
    memset(columns + i0 * S, 0, (i1 - i0) * S * sizeof(R));
    for (int64_t s = 0; s < many; ++s) {
      const int count = list.of(x + s * in + i0, i1 - i0);
      const R* from = g + s * n;
      const V last = whole < n ? Part::get(from + whole, n - whole) : K(0);
      for (int c = 0; c < count; ++c) {
        R* column = columns + (i0 + list.at[c]) * S;
        const V one = K(list.value[c]);
        int64_t j = 0;
#pragma GCC unroll 4
        for (; j < whole; j += L) Quick::put(column + j, fma_(one, Quick::get(from + j, L), Quick::get(column + j, L)), L);
        if (j < n) Quick::put(column + j, fma_(one, last, Quick::get(column + j, L)), L);
      }
    }
    for (int64_t i = i0; i < i1; ++i) for (int64_t j = 0; j < n; ++j) d_weight[j * in + i] = columns[i * S + j];
  }
}
enum { GROUP = 64 / BYTES };  // vectors of a sum: as many numbers on every machine, so that its bits are the same
static inline R dot(const R* a, const R* b, int64_t n) {  // b ends in zeros
  V sum[GROUP] = {};
  int64_t j = 0;
  for (; j + GROUP * L <= n; j += GROUP * L)
    for (int q = 0; q < GROUP; ++q) sum[q] = fma_(Quick::get(a + j + q * L, L), Quick::get(b + j + q * L, L), sum[q]);
  for (int q = 0; j < n; ++q, j += L) sum[q] = fma_(get(a + j, n - j), Quick::get(b + j, L), sum[q]);
  R lanes[64 / sizeof(R)];
  memcpy(lanes, sum, sizeof lanes);
  for (int half = 32 / sizeof(R); half; half /= 2) for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}
extern "C" void at_spikes(void** p, int64_t T, int64_t N, int64_t n, int threads) {
  const R *x = (R*)p[0], *spikes = (R*)p[1], *columns = (R*)p[2]; R* out = (R*)p[3];
  const int64_t S = padded(n);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t s = 0; s < N; ++s) {
    Flush flush; (void)flush;
    List list(n);
    memset(out + s * n, 0, n * sizeof(R));
    for (int64_t t = 0; t < T; ++t) {
      const int64_t row = (t * N + s) * n;
      const int count = list.of((const H*)spikes + row, n);
      for (int k = 0; k < count; ++k) out[s * n + list.at[k]] += list.value[k] * dot(x + row, columns + list.at[k] * S, n);
    }
  }
}
"""


@lru_cache(maxsize=8)
def _kernels(dtype: torch.dtype) -> Any:
    library = build(prelude(dtype) + LIST + LINEAR)
    for function in (library.turn, library.forward, library.backward, library.at_spikes):
        function.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_int]
        function.restype = None
    return library


wanted = ContextVar("wanted", default=False)  # inside `snn_rules.skip_zeros`


def missing(dtype: torch.dtype, load: Callable[[torch.dtype], object] = _kernels) -> str | None:
    """Why there are no kernels for an input of `dtype` here, by what loads them; None where there are."""
    from . import FORCED

    return "SNN_RULES_EXECUTOR=eager" if FORCED == "eager" else _failure(dtype, load)


@lru_cache(maxsize=16)
def _failure(dtype: torch.dtype, load: Callable[[torch.dtype], object]) -> str | None:
    try:
        load(dtype)
    except NoCompiler as cause:
        say_once(f"matrix products go over the zeros of spike trains, too, several times slower: {cause}")
        return str(cause)
    return None


def worth(x: Tensor) -> bool:
    """Whether kernels can leave out the zeros of `x[rows, in]`, which is contiguous, and are faster for it."""
    return part(x) <= FEW and missing(x.dtype) is None


def part(x: Tensor) -> float:
    """Of `x[rows, in]` that is not zero, going by some of its rows."""
    some = x[:: len(x) // 16 | 1]  # an odd number: not always the same sample
    return int(some.count_nonzero()) / max(some.numel(), 1)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for `x[rows, in]` and `weight[out, in]`; all contiguous, the weights in the dtype of the state."""
    out = weight.new_empty(len(x), len(weight))
    bound(x, weight, out, bias)()
    return out


def bound(x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None = None) -> Callable[[], object]:
    """What writes to `out` the product with the `x` of the moment, again and again."""
    (n, inputs), kernels = weight.shape, _kernels(x.dtype)
    columns = room(weight, inputs, n)
    _bound(kernels.turn, weight, n, columns)()
    return _bound(kernels.forward, x, n, columns, bias, out)


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """`g.T @ x` for `g[rows, out]` in the dtype of the state and `x[rows, in]`, both contiguous."""
    n, inputs = g.shape[1], x.shape[1]
    made = g.new_empty(n, inputs)
    _bound(_kernels(x.dtype).backward, x, n, g, room(g, inputs, n), made)()
    return made


def at_spikes(x: Tensor, weight: Tensor, spikes: Tensor) -> Tensor:
    """`((x @ weight) * spikes).sum(0)` of trains `[T, N, F]` and `weight[F, F]`, all contiguous: the products at spikes alone."""
    (T, N, n), kernels, out = x.shape, _kernels(x.dtype), torch.empty_like(x[0])
    columns = room(weight, n, n)
    _bound(kernels.turn, weight, n, columns)()
    kernels.at_spikes((ctypes.c_void_p * 4)(*[each.data_ptr() for each in (x, spikes, columns, out)]), T, N, n, torch.get_num_threads())
    return out


def room(like: Tensor, inputs: int, n: int) -> Tensor:
    """Room for the weights input by input, each in whole vectors."""
    return like.new_empty(inputs, -(-n // 16) * 16)


def _bound(function: Callable[..., object], x: Tensor, n: int, *tensors: Tensor | None) -> Callable[[], object]:
    """A kernel over `x`, of `n` neurons, and other tensors, kept alive."""
    pointers = (ctypes.c_void_p * (1 + len(tensors)))(*[None if t is None else t.data_ptr() for t in (x, *tensors)])
    given = *x.shape, n, torch.get_num_threads() if x.numel() >= PARALLEL else 1

    def run(held: object = (x, tensors)) -> None:
        function(pointers, *given)

    return run
