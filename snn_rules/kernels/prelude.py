"""What stands before the kernels in C++: vectors as wide as the machine's, how they are loaded and stored, and exp.

Single instructions are written in assembler: compiling <immintrin.h> takes longer than a small kernel.
"""

from __future__ import annotations

from math import factorial
from typing import Any

import torch

PART = 64  # steps of a part of a long train
NEAR = 16.0  # exp of a number within it is cheaper

PRELUDE = """\
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32  // compilers take wider vectors apart, number by number
#else
#define BYTES 16
#endif
#define INFINITY __builtin_inf()
typedef {real} R;
typedef {integer} I;
typedef R V __attribute__((vector_size(BYTES)));
typedef I B __attribute__((vector_size(BYTES)));
typedef {outside} H;  // of inputs, spikes and gradients
typedef int8_t F __attribute__((vector_size(BYTES / sizeof(R))));  // conditions in memory
typedef R U __attribute__((vector_size(BYTES), aligned(sizeof(R)), may_alias));
enum {{ L = BYTES / sizeof(R), TB = 8, WIDE = 2048 / BYTES, ROW = 1024 / BYTES, PART = {part} }};
typedef std::true_type YES;
typedef std::false_type NO;
#define K(c) (V{{}} + (R)(c))
{half}struct Quick {{
  enum {{ WHOLE = 1 }};
  static void fetch(const void*) {{}}
  static V get(const R* p, int) {{ return *(const U*)p; }}
  static void put(R* p, V v, int) {{ *(U*)p = v; }}
  static void out(R* p, V v, int) {{ *(U*)p = v; }}{half_whole}
}};
struct Stream : Quick {{  // past the caches: for outputs much larger than they are
  using Quick::out;
#if defined(__x86_64__)  // g++ 12 fails on its own function where a train has one step
  static void fetch(const void* p) {{ asm volatile("prefetcht0 %0" : : "m"(*(const char*)p)); }}
#else
  static void fetch(const void* p) {{ __builtin_prefetch(p); }}
#endif
  static void out(R* p, V v, int) {{
#if defined(__AVX512F__)  // whole lines of the cache: parts of one cost more than they save
    asm volatile("vmovntdq %1, %0" : "=m"(*(V*)p) : "v"(v));
#else
    *(U*)p = v;
#endif
  }}
}};
struct Part {{
  enum {{ WHOLE = 0 }};
  static void fetch(const void*) {{}}
  static V get(const R* p, int n) {{ V v = {{}}; memcpy(&v, p, n * sizeof(R)); return v; }}
  static void put(R* p, V v, int n) {{ memcpy(p, &v, n * sizeof(R)); }}
  static void out(R* p, V v, int n) {{ put(p, v, n); }}{half_part}
}};
static inline int any_(B b) {{ uint64_t w[BYTES / 8], all = 0; memcpy(w, &b, sizeof w); for (uint64_t one : w) all |= one; return all != 0; }}
{fused}
#if defined(__AVX2__)
static inline V min_(V a, V b) {{ asm("vminp{letter} %1, %2, %0" : "=v"(a) : "v"(a), "v"(b)); return a; }}  // a > b ? b : a, in one instruction
static inline V max_(V a, V b) {{ asm("vmaxp{letter} %1, %2, %0" : "=v"(a) : "v"(a), "v"(b)); return a; }}
static inline B unpack(F f) {{ B b; asm("vpmovsxb{lane} %1, %0" : "=v"(b) : "vm"(f)); return b; }}
#else
static inline B unpack(F f) {{ return __builtin_convertvector(f, B); }}
static inline V min_(V a, V b) {{ return a > b ? b : a; }}
static inline V max_(V a, V b) {{ return a < b ? b : a; }}
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)  // of lanes that are 0 or -1, half the bits until a byte is left; compilers take them one by one
static inline F pack(B b) {{
  int8_t x __attribute__((vector_size(16))); F f;
  asm("vextracti128 $1, %1, %0; vpackssdw %0, %x1, %0; vpacksswb %0, %0, %0{pack_double}" : "=&x"(x) : "x"(b));
  memcpy(&f, &x, sizeof f);
  return f;
}}
#else
static inline F pack(B b) {{ return __builtin_convertvector(b, F); }}
#endif
static inline V scale_(V k) {{ B bits; memcpy(&bits, &k, sizeof bits); bits = bits << {mantissa}; memcpy(&k, &bits, sizeof k); return k; }}
{exp}
struct Flush {{  // denormals of silent neurons halve the speed
#if defined(__x86_64__)
  unsigned was = _mm_getcsr(); Flush() {{ _mm_setcsr(was | 0x8040); }} ~Flush() {{ _mm_setcsr(was); }}
#endif
}};
"""

# a * b + c and c - a * b, rounded once: the same bits on every machine
FUSED = """\
#if defined(__AVX2__) && defined(__FMA__)
static inline V fma_(V a, V b, V c) { asm("vfmadd213ps %2, %1, %0" : "+v"(a) : "v"(b), "vm"(c)); return a; }
static inline V fnma_(V a, V b, V c) { asm("vfnmadd213ps %2, %1, %0" : "+v"(a) : "v"(b), "vm"(c)); return a; }
#else
static inline V fma_(V a, V b, V c) { for (int l = 0; l < L; ++l) a[l] = __builtin_fmaf(a[l], b[l], c[l]); return a; }
static inline V fnma_(V a, V b, V c) { return fma_(-a, b, c); }
#endif"""
PLAIN = "static inline V fma_(V a, V b, V c) { return a * b + c; }\nstatic inline V fnma_(V a, V b, V c) { return c - a * b; }"

# exp(x) = 2^k exp(r), r on [-ln2/2, ln2/2], where exp(r) = 1 + r + r^2 times a polynomial: of the least error in float32 (2e-7), of the
# Taylor series in float64. Adding `magic` rounds to a whole number, which then stands in the last bits, with the bias of the
# exponent: shifted, they are 2^k.
FLOAT = {
    "real": "float", "integer": "int32_t", "letter": "s", "lane": "d", "fused": FUSED, "mantissa": 23, "low": "-87.0", "high": "88.0",
    "magic": "12583039.0", "ln2_high": "0.693359375", "ln2_low": "-2.12194440e-4",
    "powers": (0.49999232, 0.16667115, 0.04189015, 0.00831252), "pack_double": "",
}  # fmt: skip
DOUBLE = {
    "real": "double", "integer": "int64_t", "letter": "d", "lane": "q", "fused": PLAIN, "mantissa": 52, "low": "-708.0", "high": "709.0",
    "magic": "6755399441056767.0", "ln2_high": "6.93145751953125e-1", "ln2_low": "1.42860682030941723212e-6",
    "powers": tuple(1 / factorial(k) for k in range(2, 14)), "pack_double": "; vpacksswb %0, %0, %0",
}  # fmt: skip

EXP = """\
{qualifiers} V exp_power(V x) {{ return scale_(fma_(x, K(1.44269504088896340736), K({magic}))); }}
{qualifiers} V exp_part(V x, const bool near) {{
  const V k = fma_(x, K(1.44269504088896340736), K({magic})) - K({magic});
  const V r = near ? {near} : {far};
{polynomial}
  return y;
}}
{qualifiers} V exp_(V x) {{
  x = min_(max_(x, K({low})), K({high}));
  return exp_part(x, false) * exp_power(x);
}}
"""


def exponential(values: dict[str, Any], qualifiers: str = "static inline") -> str:
    """The lines of `exp_`, and of its factors 2^k and exp(r). For a number `near` zero one constant takes off the powers of two in float32."""
    first, *rest = reversed([1.0, 1.0, *values["powers"]])
    polynomial = "\n".join([f"  V y = K({first!r});", *(f"  y = fma_(y, r, K({power!r}));" for power in rest)])
    far = "fma_(k, K(-({ln2_low})), fma_(k, K(-({ln2_high})), x))".format(**values)
    near = far if values["real"] == "double" else "fma_(k, K(-0.69314718055994530942), x)"
    return EXP.format(**values, qualifiers=qualifiers, polynomial=polynomial, near=near, far=far)


# Numbers of 16 bits, at the right of unsigned ones of 32: written out in integers, so that every machine has the same bits.
# float16 reaches below its exponents by adding and subtracting a power of two.
HALF = {
    torch.bfloat16: """\
{qualifiers} V widen_(Bits h) {{ return real_(h << 16); }}
{qualifiers} Bits narrow_(V v) {{
  const Bits u = bits_(v);
  return v != v ? N(0x7fc0) : (u + N(0x7fff) + (u >> 16 & N(1))) >> 16;
}}
""",
    torch.float16: """\
{qualifiers} V widen_(Bits h) {{
  const Bits u = ((h & N(0x7fff)) << 13) + N(0x38000000), beyond = h & N(0x7c00);
  const V v = beyond == N(0) ? real_(u + N(0x800000)) - real_(N(0x38800000)) : real_(beyond == N(0x7c00) ? u + N(0x38000000) : u);
  return real_(bits_(v) | (h & N(0x8000)) << 16);
}}
{qualifiers} Bits narrow_(V v) {{
  const Bits sign = bits_(v) & N(0x80000000), u = bits_(v) ^ sign;
  const Bits small = bits_(real_(u) + K(0.5)) - N(0x3f000000), other = (u - N(0x38000000) + N(0xfff) + (u >> 13 & N(1))) >> 13;
  const Bits large = u > N(0x7f800000) ? N(0x7e00) : N(0x7c00);
  return (u >= N(0x47800000) ? large : u < N(0x38800000) ? small : other) | sign >> 16;
}}
""",
}  # fmt: skip
VECTORS = """\
typedef uint32_t Bits __attribute__((vector_size(BYTES)));
typedef H HU __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));
#define N(c) (Bits{} + c)
static inline V real_(Bits b) { return (V)b; }
static inline Bits bits_(V v) { return (Bits)v; }
"""
WHOLE = """
  static V get(const H* p, int) { return widen_(__builtin_convertvector(*(const HU*)p, Bits)); }
  static void out(H* p, V v, int) { *(HU*)p = __builtin_convertvector(narrow_(v), HU); }"""
WHOLE_FLOAT16 = f"""
#if defined(__AVX2__) && defined(__F16C__)
  static V get(const H* p, int) {{ V v; asm("vcvtph2ps %1, %0" : "=v"(v) : "m"(*(const HU*)p)); return v; }}
  static void out(H* p, V v, int) {{ asm("vcvtps2ph $0, %1, %0" : "=m"(*(HU*)p) : "v"(v)); }}
#else{WHOLE}
#endif"""
PARTIAL = """
  static V get(const H* p, int n) { H h[L] = {}; memcpy(h, p, n * sizeof(H)); return Quick::get(h, n); }
  static void out(H* p, V v, int n) { H h[L]; Quick::out(h, v, n); memcpy(p, h, n * sizeof(H)); }"""


def prelude(dtype: torch.dtype) -> str:
    """For tensors of `dtype`: in half precision, the state is float32."""
    values: dict[str, Any] = dict(DOUBLE if dtype == torch.float64 else FLOAT)
    values |= {"part": PART, "outside": "R", "half": "", "half_whole": "", "half_part": ""}
    if dtype in HALF:
        convert = HALF[dtype].format(qualifiers="static inline")
        values |= {
            "outside": "uint16_t",
            "half": VECTORS + convert,
            "half_whole": WHOLE_FLOAT16 if dtype == torch.float16 else WHOLE,
            "half_part": PARTIAL,
        }
    return PRELUDE.format(**values, exp=exponential(values))
