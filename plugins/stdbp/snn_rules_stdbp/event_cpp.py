"""The event layer's kernels in C++ for the CPU, around the lines that `STDBP.event`, `pull` and `causal` trace to.

Forward: a thread owns a sample, sorts its inputs and walks them for a few vectors of neurons at a time, whose state stays
in registers. Backward: a thread owns a block of inputs and walks the samples in order, so no two threads add to one sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snn_rules.kernels.emit import Lines, constant
from snn_rules.kernels.graph import Graph, Leaves, Node
from snn_rules.kernels.prelude import prelude

if TYPE_CHECKING:
    import torch

    from .rule import STDBP

SETUP = """\
typedef std::make_unsigned<I>::type Key;
enum { NV = 4, NI = 16, NS = 64 };  // vectors of neurons a walk, inputs a block, samples a time
static inline bool any(B c) {
#if defined(__AVX512F__)
  unsigned short mask; asm("vptestmq %1, %1, %0" : "=Yk"(mask) : "v"(c)); return mask;
#else
  return any_(c);
#endif
}
enum { LANES = 64 / sizeof(R), GROUP = LANES / L };  // of a sum: as many on every machine, so that its bits are the same
static inline R total(const V* d) {
  R some[LANES]; memcpy(some, d, sizeof some);
  for (int l = 0; l < LANES / 2; ++l) some[l] += some[l + LANES / 2];
  for (int l = 0; l < LANES / 4; ++l) some[l] += some[l + LANES / 4];
  R sum = some[0];
  for (int l = 1; l < LANES / 4; ++l) sum += some[l];
  return sum;
}
static inline V get(const R* p, int n) { return n == L ? Quick::get(p, n) : Part::get(p, n); }
static inline void put(R* p, V v, int n) { if (n == L) Quick::put(p, v, n); else Part::put(p, v, n); }
static inline int64_t padded(int64_t out) { return (out + L - 1) / L * L; }
static inline int rest(int64_t out, int64_t j) { return out - j < L ? out - j : L; }
struct Spike { R t; I i; };
static inline Key key(R t) {  // in the order of the times; -0 is 0
  const R zero = t + 0; Key bits; memcpy(&bits, &zero, sizeof bits);
  const Key sign = (Key)1 << (8 * sizeof(R) - 1);
  return bits & sign ? ~bits : bits | sign;
}
static Spike* sort(Spike* a, Spike* b, int64_t n) {  // into a or b; equal times stay in order
  if (n < 64) {
    for (int64_t k = 1, h; k < n; ++k) {
      const Spike x = a[k];
      for (h = k; h > 0 && x.t < a[h - 1].t; --h) a[h] = a[h - 1];
      a[h] = x;
    }
    return a;
  }
  int32_t count[sizeof(R)][256] = {};
  for (int64_t k = 0; k < n; ++k)
    for (int d = 0; d < (int)sizeof(R); ++d) ++count[d][key(a[k].t) >> 8 * d & 255];
  for (int d = 0; d < (int)sizeof(R); ++d) {
    int32_t* const place = count[d];
    if (place[key(a[0].t) >> 8 * d & 255] == n) continue;
    for (int32_t v = 0, at = 0; v < 256; ++v) { const int32_t many = place[v]; place[v] = at; at += many; }
    for (int64_t k = 0; k < n; ++k) b[place[key(a[k].t) >> 8 * d & 255]++] = a[k];
    Spike* const sorted = b; b = a; a = sorted;
  }
  return a;
}
static void rows_of(const R* weight, R* rows, int64_t i0, int ni, int64_t in, int64_t out, int64_t S) {  // weight^T
  for (int64_t j0 = 0; j0 < out; j0 += L)
    for (int i = 0; i < ni; ++i) {
      R* row = rows + i * S + j0;
      for (int k = 0; k < L; ++k) row[k] = j0 + k < out ? weight[(j0 + k) * in + i0 + i] : 0;
    }
}
"""

FORWARD = """
template <int NC> static void walk(const Spike* spikes, int64_t n, const R* rows, int64_t S, R* p_time, R* p_s_slope, int64_t out) {{
{begin}
  R before = 0;
  for (int64_t k = 0; k <= n; ++k) {{
    const V now = K(before), dt = K(spikes[k].t - before);
    const R* row = rows + spikes[k].i * S;
    before = spikes[k].t;
#pragma GCC unroll 8
    for (int c = 0; c < NC; ++c) {{
      const V w = Quick::get(row + c * L, L);
{step}
    }}
  }}
  for (int c = 0; c < NC; ++c) {{
    put(p_time + c * L, S_time[c], rest(out, c * L));
    put(p_s_slope + c * L, S_s_slope[c], rest(out, c * L));
  }}
}}
extern "C" void forward(void** p, int64_t N, int64_t in, int64_t out, int threads) {{
  const R *times = (R*)p[0], *weight = (R*)p[1]; R *rows = (R*)p[2], *p_time = (R*)p[3], *p_s_slope = (R*)p[4];
  const int64_t S = padded(out);
  memset(rows + in * S, 0, S * sizeof(R));
#pragma omp parallel num_threads(threads)
  {{
    Flush flush; (void)flush;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < in; i += NI) rows_of(weight, rows + i * S, i, in - i < NI ? in - i : NI, in, out, S);
    Spike* const space = (Spike*)malloc(2 * (in + 1) * sizeof(Spike));
#pragma omp for schedule(dynamic, 4)
    for (int64_t s = 0; s < N; ++s) {{
      const R* t = times + s * in; int64_t n = 0;
      for (int64_t i = 0; i < in; ++i) {{ space[n] = Spike{{t[i], (I)i}}; n += t[i] < (R){window}; }}
      Spike* const spikes = sort(space, space + in + 1, n);
      spikes[n] = Spike{{(R){window}, (I)in}};  // the end of the window; row `in` is zero
      int64_t j = 0;
      for (; S - j >= NV * L; j += NV * L) walk<NV>(spikes, n, rows + j, S, p_time + s * out + j, p_s_slope + s * out + j, out - j);
      for (; j < S; j += L) walk<1>(spikes, n, rows + j, S, p_time + s * out + j, p_s_slope + s * out + j, out - j);
    }}
    free(space);
  }}
}}
"""

BACKWARD = """
extern "C" void backward(void** p, int64_t N, int64_t in, int64_t out, int threads) {{
  const R *times = (R*)p[0], *weight = (R*)p[1], *p_time = (R*)p[2], *p_s_slope = (R*)p[3], *p_g = (R*)p[4];
  R *neurons = (R*)p[5], *d_times = (R*)p[6], *d_weight = (R*)p[7];
  const int64_t S = padded(out);
#pragma omp parallel num_threads(threads)
  {{
    Flush flush; (void)flush;
#pragma omp for schedule(static)
    for (int64_t s = 0; s < N; ++s)
      for (int64_t j = 0; j < out; j += L) {{
        const int n = rest(out, j);
        const V time = get(p_time + s * out + j, n), s_slope = get(p_s_slope + s * out + j, n), g = get(p_g + s * out + j, n);
{pull}
        Quick::put(neurons + 2 * (s * S + j), time, L);
        Quick::put(neurons + 2 * (s * S + j) + L, {pulled}, L);
      }}
    R* rows = (R*)aligned_alloc(64, 2 * NI * S * sizeof(R)); R* sums = rows + NI * S;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i0 = 0; i0 < in; i0 += NI) {{
      const int ni = in - i0 < NI ? in - i0 : NI;
      rows_of(weight, rows, i0, ni, in, out, S);
      memset(sums, 0, NI * S * sizeof(R));
      for (int64_t s0 = 0; s0 < N; s0 += NS) {{
        int n = 0; int32_t live[NS * NI + 1];
        for (int k = 0; k < (N - s0 < NS ? N - s0 : NS); ++k)
          for (int i = 0; i < ni; ++i) {{
            const int64_t at = (s0 + k) * in + i0 + i;
            d_times[at] = 0; live[n] = k * NI + i; n += times[at] < (R){window};
          }}
        for (int k = 0; k < n; ++k) {{
          const int64_t s = s0 + live[k] / NI, i = live[k] % NI, at = s * in + i0 + i;
          const V t = K(times[at]); V d[GROUP] = {{}};
          for (int64_t j = 0; j < S; j += L) {{
            const V time = Quick::get(neurons + 2 * (s * S + j), L), pull = Quick::get(neurons + 2 * (s * S + j) + L, L);
            const V w = Quick::get(rows + i * S + j, L);
{causal}
            d[j / L % GROUP] += {d_t};
            Quick::put(sums + i * S + j, Quick::get(sums + i * S + j, L) + {d_w}, L);
          }}
          d_times[at] = total(d);
        }}
      }}
      for (int64_t j = 0; j < out; ++j)
        for (int i = 0; i < ni; ++i) d_weight[j * in + i0 + i] = sums[i * S + j];
    }}
    free(rows);
  }}
}}
"""


def source(rule: STDBP, dtype: torch.dtype) -> str:
    """Both kernels of a rule for one dtype."""
    return prelude(dtype) + SETUP + _forward(rule) + _backward(rule)


def _forward(rule: STDBP) -> str:
    graph = Graph()
    m = Leaves(lambda name: graph.leaf("given" if name == "now" else "state", name))
    after = {name: graph.lift(node) for name, node in rule.event(m, graph.leaf("given", "w"), graph.leaf("given", "dt")).items()}
    lines = Lines(lambda leaf: leaf.value[1] if leaf.value[0] == "given" else f"S_{leaf.value[1]}[c]")
    # what changes only where a neuron fires is left out of the events at which none of a vector's neurons does
    fires = next((node.args[0] for node in after.values() if node.op == "where"), None)
    rare = {name: node for name, node in after.items() if node.op == "where" and node.args[0] is fires}
    each = {name: lines(rare[name].args[2] if name in rare else node) for name, node in after.items()}
    text = []
    if fires is not None:
        crossed = lines(fires)
        branch = Lines(lines._name, lines.known, prefix="f")
        put = _assign({**each, **{name: branch(node) for name, node in rare.items()}})
        text = [f"if (__builtin_expect(any({crossed}), 0)) {{", *branch.text, *put, "} else {", *_assign(each), "}"]
    begin = "".join(
        f"  V S_{name}[NC]; for (int c = 0; c < NC; ++c) S_{name}[c] = K({constant(value)});\n" for name, value in rule.event_state.items()
    )
    return FORWARD.format(begin=begin, step=_indent([*lines.text, *(text or _assign(each))], 6), window=constant(rule.window))


def _assign(values: dict[str, str]) -> list[str]:
    changed = {name: value for name, value in values.items() if value != f"S_{name}[c]"}
    return [*(f"const V new_{name} = {value};" for name, value in changed.items()), *(f"S_{name}[c] = new_{name};" for name in changed)]


def _backward(rule: STDBP) -> str:
    graph = Graph()
    m = Leaves(lambda name: graph.leaf("given", name))

    def name(leaf: Node) -> str:
        return str(leaf.value[1])

    pull, causal = Lines(name), Lines(name)
    pulled = pull(graph.lift(rule.pull(m)))
    d_t, d_w = (causal(graph.lift(node)) for node in rule.causal(m))
    values = {"pull": _indent(pull.text, 8), "pulled": pulled, "causal": _indent(causal.text, 12), "d_t": d_t, "d_w": d_w}
    return BACKWARD.format(**values, window=constant(rule.window))


def _indent(lines: list[str], by: int) -> str:
    return "\n".join(" " * by + line for line in lines)
