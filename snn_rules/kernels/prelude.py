"""What stands before the kernels in C++: vectors of 64 bytes, how they are loaded and stored, and exp."""

from __future__ import annotations

from typing import Any

PRELUDE = """\
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
typedef {real} R;
typedef {integer} I;
typedef R V __attribute__((vector_size(64)));
typedef I B __attribute__((vector_size(64)));
typedef R U __attribute__((vector_size(64), aligned(sizeof(R)), may_alias));
enum {{ L = 64 / sizeof(R), TB = 8, WIDE = 32 }};
#define K(c) (V{{}} + (R)(c))
struct Quick {{
  static V get(const R* p, int) {{ return *(const U*)p; }}
  static void put(R* p, V v, int) {{ *(U*)p = v; }}
  static void out(R* p, V v, int) {{ *(U*)p = v; }}
}};
struct Stream : Quick {{  // past the caches: for outputs much larger than they are
  static void out(R* p, V v, int) {{
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX__)
    __m256i h[2]; memcpy(h, &v, sizeof h);
    _mm256_stream_si256((__m256i*)p, h[0]); _mm256_stream_si256((__m256i*)p + 1, h[1]);
#else
    *(U*)p = v;
#endif
  }}
}};
struct Part {{
  static V get(const R* p, int n) {{ V v = {{}}; memcpy(&v, p, n * sizeof(R)); return v; }}
  static void put(R* p, V v, int n) {{ memcpy(p, &v, n * sizeof(R)); }}
  static void out(R* p, V v, int n) {{ put(p, v, n); }}
}};
static inline int any_(B b) {{ uint64_t w[8], all = 0; memcpy(w, &b, sizeof w); for (uint64_t one : w) all |= one; return all != 0; }}
static inline V exp_in_range(V x) {{  // 2^k times a polynomial, to 2 ulp
  V k = x * K(1.44269504088896340736) + K({magic});
  k = k - K({magic});
  V r = x - k * K({ln2_high});
  r = r - k * K({ln2_low});
{exp_polynomial}
  const B bits = (__builtin_convertvector(k, B) + {bias}) << {mantissa};
  V scale; memcpy(&scale, &bits, sizeof scale);
  return y * scale;
}}
static inline V exp_(V x) {{
  const V lo = K({exp_low}), hi = K({exp_high});
  return exp_in_range(x < lo ? lo : x > hi ? hi : x);
}}
struct Flush {{  // denormals of silent neurons halve the speed
#if defined(__x86_64__)
  unsigned was = _mm_getcsr(); Flush() {{ _mm_setcsr(was | 0x8040); }} ~Flush() {{ _mm_setcsr(was); }}
#endif
}};
"""

# exp(r) on [-ln2/2, ln2/2] by its Taylor series, to the last bit of the type
FLOAT = {
    "real": "float", "integer": "int32_t", "exp_low": "-87.0", "exp_high": "88.0", "magic": "12582912.0", "bias": 127, "mantissa": 23,
    "ln2_high": "0.693359375", "ln2_low": "-2.12194440e-4", "terms": 6,
}  # fmt: skip
DOUBLE = {
    "real": "double", "integer": "int64_t", "exp_low": "-708.0", "exp_high": "709.0", "magic": "6755399441055744.0", "bias": 1023, "mantissa": 52,
    "ln2_high": "6.93145751953125e-1", "ln2_low": "1.42860682030941723212e-6", "terms": 13,
}  # fmt: skip


def prelude(double: bool) -> str:
    values: dict[str, Any] = dict(DOUBLE if double else FLOAT)
    factorials = [1.0]
    for k in range(1, values["terms"] + 1):
        factorials.append(factorials[-1] * k)
    polynomial = f"  V y = K({1 / factorials[-1]!r});\n" + "".join(f"  y = y * r + K({1 / f!r});\n" for f in reversed(factorials[:-1]))
    return PRELUDE.format(**values, exp_polynomial=polynomial.rstrip())
