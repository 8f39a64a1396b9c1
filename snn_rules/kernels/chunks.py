"""The loop over chunks of neurons around a C++ kernel's walks, and the memory that a chunk is given."""

from __future__ import annotations

from .emit import kind_of


def each(body: str) -> str:
    return f"  for (int c = 0; c < NC; ++c) {{\n    const int64_t j = j0 + c * L; const int n = M - j < L ? M - j : L; (void)n;\n{body}  }}\n"


def kernel(name: str, pointers: tuple[str, ...], body: str, scratch: int = 0, states: int = 0, steps: int | None = None, few: int = 1) -> str:
    """All chunks, in parallel; whole vectors take the quick way. `width` is in vectors, as `scratch` is, of TB steps.

    With `steps`, T is a constant, and a chunk is `few` vectors: of one, everything between its loads and stores stays in registers; of
    several, one computes while another waits.
    """
    whole = _WHOLE * 8 // max(scratch, 1)
    length = f"!p[{pointers.index('marks')}] && T <= {whole} ? T : PART" if scratch and not steps else "T"
    unpack = "\n".join(f"  {(kind := kind_of(n))}* const p_{n} = ({kind}*)p[{k}]; (void)p_{n};" for k, n in enumerate(pointers))
    written = " | ".join(f"(uintptr_t)p[{k}]" for k, n in enumerate(pointers) if n in ("s", "dx") or n.startswith(("out_", "c_")))
    stream = f"T * M * (int64_t)sizeof(H) >= {_LARGE} && M % L == 0 && (({written}) & 63) == 0" if {"s", "dx"} & {*pointers} else "false"
    ahead, back = ("24 * L", "24 * L") if steps else ("TB * M", "-TB * M")  # what is fetched early: some lines on, or the next block of steps
    choose, allocate, count, held = "  int64_t width = WIDE;\n", "    V* sc = nullptr;\n", "const int NC", "V* sc"
    if scratch:  # of a part of the train, and a mark for each part, a neuron
        choose = f"""  const int64_t length = {length}, size = (length / TB + 1) * {scratch} + (T / PART + 1) * {states};
  const int64_t room = {_CACHE} / (int64_t)sizeof(V) / size;
  int64_t width = room > WIDE ? WIDE : room >= ROW ? room : 2 * room > ROW ? ROW : 2 * room;  // of memory's pages, more than a line or two at a time
"""
        allocate = "    V* sc = (V*)aligned_alloc(64, sizeof(V) * size * (width > 1 ? width : 1));\n"
    unpack += f"\n  const int64_t length = {length}; (void)length;"
    unpack += f"\n  V* const mark = sc + (length / TB + 1) * {scratch} * NC; (void)mark;"
    if steps:
        choose, allocate, held = f"  int64_t width = {few};\n", "    V* sc = nullptr;\n", "V*"
        count, one = ("int", " constexpr int NC = 1;") if few == 1 else ("const int NC", "")
        unpack = f"  constexpr int64_t T = {steps};{one} V sc[{max(scratch, 1) * few}]; (void)sc;\n{unpack}"
    return f"""
template <class A> static inline __attribute__((always_inline))
void {name}_chunk(B& wrong, void** p, int64_t{"" if steps else " T"}, int64_t M, int64_t j0, {count}, {held}) {{
{unpack}
  const int64_t AHEAD = {ahead}, BACK = {back}; (void)AHEAD; (void)BACK;
{body}}}
extern "C" int {name}(void** p, int64_t T, int64_t M, int threads) {{
{choose}  int64_t share = (M + threads - 1) / threads; share = (share + L - 1) / L;
  width = width < share ? width : share; width = width < 1 ? 1 : width;
  const int64_t chunks = (M + width * L - 1) / (width * L);
  const bool stream = {stream};
  const auto some = [=](int64_t first, int64_t last) {{
    Flush flush; (void)flush;
    B bad = {{}};
{allocate}    for (int64_t i = first; i < last; ++i) {{
      const int64_t j0 = i * width * L, left = M - j0;
      const int whole = left >= width * L ? width : left / L;
      if (whole) stream ? {name}_chunk<Stream>(bad, p, T, M, j0, whole, sc) : {name}_chunk<Quick>(bad, p, T, M, j0, whole, sc);
      if (whole < width && left > whole * L) {name}_chunk<Part>(bad, p, T, M, j0 + whole * L, 1, sc);
    }}
    free(sc);
    return any_(bad);
  }};
  if (threads == 1) return some(0, chunks);  // a team of one costs system calls
  int wrong = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(|:wrong)
  for (int k = 0; k < threads; ++k) wrong |= some(chunks * k / threads, chunks * (k + 1) / threads);
  return wrong;
}}
"""


_LARGE = 4 << 20  # bytes of an output that is written past the caches, in which it would crowd out what else a layer reads
_CACHE = 512 * 1024  # of scratch a thread: a part of its second-level cache
_WHOLE = 2048  # values of a neuron up to which a train is walked back in one piece: of four vectors, they fill the cache


def indent(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.splitlines())
