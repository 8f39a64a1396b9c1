"""Convolutions that leave out the zeros of their input, in C++ for the CPU.

Forward, a thread takes an image; each of its spikes adds its weights to the places that it reaches, whose maps lie side by side
meanwhile. Backward, the images are split into a fixed number of parts, and each spike adds the gradients of the places that it reaches
to its weights; the parts' sums are added in their order, whatever the number of threads.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .build import build
from .prelude import prelude
from .zeros import LIST, missing, part, room

FEW = 1 / 12  # of an input; with more spikes, torch's convolution is as fast
PARTS = 16  # of a batch, each with a sum of its own
TEXT = """
enum { CACHE = 256 * 1024 };  // bytes of a thread's second-level cache
struct Shape { int64_t C, H, W, n, kh, kw, sy, sx, py, px, oh, ow; };
static void maps(const R* places, R* out, int64_t P, int64_t n, int64_t S) {  // from a place's maps side by side to map after map
  for (int64_t p = 0; p < P; p += 16) for (int64_t j = 0; j < n; ++j)
    for (int64_t q = p; q < P && q < p + 16; ++q) out[j * P + q] = places[q * S + j];
}
static void places(const R* maps, R* out, int64_t P, int64_t n, int64_t S) {  // and back
  for (int64_t p = 0; p < P; p += 16) for (int64_t j = 0; j < n; ++j)
    for (int64_t q = p; q < P && q < p + 16; ++q) out[q * S + j] = maps[j * P + q];
}
template <class Do> static inline __attribute__((always_inline)) void each(const H* image, List& list, const Shape& d, Do reach) {
  const int64_t some = CACHE / (d.ow * ((d.n + 15) / 16 * 16) * sizeof(R)), band = some < 1 ? 1 : some < d.H ? some : d.H;
  for (int64_t y0 = 0; y0 < d.H; y0 += band) for (int64_t c = 0; c < d.C; ++c) {  // the places that a band of rows reaches stay in the cache
    const int64_t rows = d.H - y0 < band ? d.H - y0 : band;
    const int count = list.of(image + (c * d.H + y0) * d.W, rows * d.W);
    for (int k = 0; k < count; ++k) {
      const int y = y0 + list.at[k] / (int)d.W + d.py, x = list.at[k] % (int)d.W + d.px;
      const V value = K(list.value[k]);
      for (int ky = 0; ky < d.kh && ky <= y; ++ky) {
        const int oy = d.sy == 1 ? y - ky : (y - ky) % (int)d.sy ? d.oh : (y - ky) / (int)d.sy;
        if (oy >= d.oh) continue;
        for (int kx = 0; kx < d.kw && kx <= x; ++kx) {
          const int ox = d.sx == 1 ? x - kx : (x - kx) % (int)d.sx ? d.ow : (x - kx) / (int)d.sx;
          if (ox < d.ow) reach(value, (c * d.kh + ky) * d.kw + kx, oy * d.ow + ox);
        }
      }
    }
  }
}
static inline void add(R* to, const R* from, V value, int64_t S) {
#pragma GCC unroll 4
  for (int64_t j = 0; j < S; j += L) Quick::put(to + j, fma_(value, Quick::get(from + j, L), Quick::get(to + j, L)), L);
}
extern "C" void forward(void** p, const Shape* shape, int64_t many, int threads) {
  const H* x = (H*)p[0]; const R *columns = (R*)p[1], *bias = (R*)p[2]; R* out = (R*)p[3];
  const Shape d = *shape;
  const int64_t S = padded(d.n), P = d.oh * d.ow;
#pragma omp parallel num_threads(threads)
  {
    Flush flush; (void)flush;
    List list(d.H * d.W);
    R* const sums = (R*)malloc(P * S * sizeof(R));
#pragma omp for schedule(static)
    for (int64_t s = 0; s < many; ++s) {
      for (int64_t q = 0; q < P; ++q) for (int64_t j = 0; j < S; j += L) Quick::put(sums + q * S + j, bias ? get(bias + j, d.n - j) : K(0), L);
      each(x + s * d.C * d.H * d.W, list, d, [=](V value, int64_t from, int64_t to) __attribute__((always_inline)) {
        add(sums + to * S, columns + from * S, value, S);
      });
      maps(sums, out + s * d.n * P, P, d.n, S);
    }
    free(sums);
  }
}
extern "C" void backward(void** p, const Shape* shape, int64_t many, int threads) {
  const H* x = (H*)p[0]; const R* g = (R*)p[1]; R *columns = (R*)p[2], *d_weight = (R*)p[3];
  const Shape d = *shape;
  const int64_t S = padded(d.n), P = d.oh * d.ow, in = d.C * d.kh * d.kw;
#pragma omp parallel num_threads(threads)
  {
    Flush flush; (void)flush;
    List list(d.H * d.W);
    R* const at = (R*)calloc(P * S, sizeof(R));
#pragma omp for schedule(static)
    for (int64_t part = 0; part < PARTS; ++part) {
      R* const sums = columns + part * in * S;
      memset(sums, 0, in * S * sizeof(R));
      for (int64_t s = many * part / PARTS; s < many * (part + 1) / PARTS; ++s) {
        places(g + s * d.n * P, at, P, d.n, S);
        each(x + s * d.C * d.H * d.W, list, d, [=](V value, int64_t to, int64_t from) __attribute__((always_inline)) {
          add(sums + to * S, at + from * S, value, S);
        });
      }
    }
    free(at);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < in; ++i) {
      R* const sum = columns + i * S;
      for (int64_t part = 1; part < PARTS; ++part) add(sum, sum + part * in * S, K(1), S);
      for (int64_t j = 0; j < d.n; ++j) d_weight[j * in + i] = sum[j];
    }
  }
}
""".replace("PARTS", str(PARTS))


@lru_cache(maxsize=8)
def _kernels(dtype: torch.dtype) -> Any:
    library = build(prelude(dtype) + LIST + TEXT)
    library.turn.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_int]
    for function in (library.forward, library.backward):
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    for function in (library.turn, library.forward, library.backward):
        function.restype = None
    return library


def worth(maps: Tensor) -> bool:
    """Whether kernels can leave out the zeros of `maps[images times channels, H times W]`, and are faster for it."""
    return part(maps) <= FEW and missing(maps.dtype, _kernels) is None


Pair = tuple[int, int]


def size(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Pair:
    """Height and width of the output's maps."""
    across = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    height, width = (((length + 2 * more - kernel) // step + 1) for length, kernel, step, more in across)
    return height, width


def product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """`torch.nn.functional.conv2d` of `x[N, C, H, W]` and `weight[out, C, kh, kw]`; all contiguous, the weights in the dtype of the state."""
    n, threads = len(weight), torch.get_num_threads()
    columns, out = room(weight, weight[0].numel(), n), weight.new_empty(len(x), n, *size(x, weight, stride, padding))
    _kernels(x.dtype).turn(_pointers(weight, columns), 0, weight[0].numel(), n, threads)
    _kernels(x.dtype).forward(_pointers(x, columns, bias, out), _shape(x, weight.shape, stride, padding, out), len(x), threads)
    return out


def weight_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """That of `weight`, for the gradient `g` of the output in its dtype; all contiguous."""
    made, sums = torch.empty_like(weight), room(weight, PARTS * weight[0].numel(), len(weight))
    _kernels(x.dtype).backward(_pointers(x, g, sums, made), _shape(x, weight.shape, stride, padding, g), len(x), torch.get_num_threads())
    return made


def _pointers(*tensors: Tensor | None) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


def _shape(x: Tensor, weight: torch.Size, stride: Pair, padding: Pair, out: Tensor) -> Any:
    return (ctypes.c_int64 * 12)(*x.shape[1:], weight[0], *weight[2:], *stride, *padding, *out.shape[2:])
