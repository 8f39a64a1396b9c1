"""A rule's kernels in C++ for the CPU: chunks of neurons, time inside, neurons in vector registers.

Each kernel is `int kernel(void** p, int64 T, int64 M, int threads)`; `Source` names the pointers in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from .emit import Lines, constant
from .graph import BOOLEAN, Node, order
from .program import Program, Stage


@dataclass(frozen=True)
class Source:
    """A kernel's text and the names of its pointers."""

    name: str
    text: str
    pointers: tuple[str, ...]


def forward(program: Program, steps: int | None = None) -> Source:
    """Spikes and the state after the last step. Returns 1 where a state is not finite."""
    states = list(program.rule.state)
    pointers = ("x", "late", "s", *(f"in_{n}" for n in states), *(f"out_{n}" for n in states), "record")
    text = _first_walk(program, _step(program), dict(program.rule.state))
    return Source("forward", _kernel("forward", pointers, text, _finals(states), steps=steps), pointers)


def backward(program: Program, index: int, steps: int | None = None) -> Source:
    """A part of the backward pass: `dx` if it is the last, and values of each neuron."""
    stage, states, name = program.stages[index], list(program.rule.state), f"backward{index}"
    pointers = (
        "x",
        "late",
        "sent",
        "g",
        "dx",
        *(f"in_{n}" for n in states),
        *(f"n_{n}" for n in stage.neurons),
        "n_scale",
        *(f"c_{n}" for n in stage.writes),
    )
    carries = {f"c{n}": value for n, value in stage.ahead.start.items()} if stage.ahead else {}
    text = _first_walk(program, _step(program, stage), {**program.rule.state, **carries}, len(stage.scratch))
    end = _reverse_walk(program, stage) if stage.back else ""
    left = [n for n in stage.writes if not stage.back]
    end += _each("".join(f"    A::put(p_c_{n} + j, S_c{n}[c], n);\n" for n in left)) if left else ""
    return Source(name, _kernel(name, pointers, text, end, len(stage.scratch), steps), pointers)


# ---- the walk through the steps ------------------------------------------------------------------------------------


def _gain(program: Program) -> str:
    return "" if program.gain == 1.0 else f" * K({constant(program.gain)})"


def _step(program: Program, stage: Stage | None = None) -> str:
    """One step: the input has arrived in `a`; states are `v_NAME`. Without a stage: the forward kernel's."""
    traced = program.traced

    def name(leaf: Node) -> str:
        kind, what = leaf.value
        return {"state": f"v_{what}", "carry": f"v_c{what}", "step": str(what), "neuron": f"n_{what}", "total": f"n_{what}"}[kind]

    lines = Lines(name)
    kept = [lines(node) for node in stage.scratch] if stage else []
    spike = None if stage else lines(traced.spike)
    after = [(n, lines(node)) for n, node in traced.state.items()]
    after += [(f"c{n}", lines(node)) for n, node in stage.ahead.carry.items()] if stage and stage.ahead else []
    text = [*_loads(program, stage.ahead_reads, ("x", "g"))] if stage else []
    text += [*lines.text, *(f"sc_at[(t - t0) * {len(kept)} + {k}] = {value};" for k, value in enumerate(kept))]
    text += [] if stage else [f"A::out(p_s + t * M + j, {spike}, n);"]
    text += [f"const V new_{n} = {value};" for n, value in after] + [f"v_{n} = new_{n};" for n, _ in after]
    text += [] if stage else ["if (p_record) A::put(p_record + t * M + j, v_v, n);"]
    return "\n".join(text)


def _loads(program: Program, reads: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    """Lines that load the step's own values."""
    sources = {
        "a": _arrival(program),
        "x": f"A::get(p_{'sent' if program.recurrent else 'x'} + t * M + j, n){_gain(program)}",
        "g": "A::get(p_g + t * M + j, n)",
    }
    return [f"const V {name} = {sources[name]};" for name in wanted if name in reads]


def _arrival(program: Program) -> str:
    """What arrives at the neuron at step t: the input of `delay` steps before, at first the queue of the call before."""
    delay = program.delay
    now = f"A::get(p_x + (t - {delay}) * M + j, n)" if delay else "A::get(p_x + t * M + j, n)"
    return (f"(t < {delay} ? A::get(p_late + t * M + j, n) : {now})" if delay else now) + _gain(program)


def _block(width: int) -> str:
    """Where the scratch of a block of TB steps begins: it lies in the order in which both walks touch it."""
    return f"      V* const sc_at = sc + (t0 / TB * NC + c) * {width * 8}; (void)sc_at;\n" if width else ""


def _first_walk(program: Program, body: str, start: dict[str, float], width: int = 0) -> str:
    """The walk through the steps, TB at a time with the state in registers; leaves the last state in the arrays `NAME`."""
    declare = "".join(f"  V S_{n}[WIDE];\n" for n in start)
    given = {n: f"p_in_{n} ? A::get(p_in_{n} + j, n) : " if n in program.rule.state else "" for n in start}
    begin = "".join(f"    S_{n}[c] = {given[n]}K({constant(value)});\n" for n, value in start.items())
    load = " ".join(f"V v_{n} = S_{n}[c];" for n in start)
    save = " ".join(f"S_{n}[c] = v_{n};" for n in start)
    step = _indent(f"const V a = {_arrival(program)};\n{body}", 8)
    return f"""{declare}{_each(begin)}  for (int64_t t0 = 0; t0 < T; t0 += TB)
    for (int c = 0; c < NC; ++c) {{
      const int64_t j = j0 + c * L; const int n = M - j < L ? M - j : L; (void)n;
{_block(width)}      {load}
      auto one = [&](int64_t t) __attribute__((always_inline)) {{
{step}
      }};
      if (A::WHOLE && T - t0 >= TB) {{
#pragma GCC unroll 8
        for (int k = 0; k < TB; ++k) one(t0 + k);
      }} else {{
#pragma GCC unroll REST
        for (int64_t t = t0; t < (T - t0 < TB ? T : t0 + TB); ++t) one(t);
      }}
      {save}
    }}
"""


def _reverse_walk(program: Program, stage: Stage) -> str:
    walk, delay = stage.back, program.delay
    assert walk is not None
    ahead = stage.ahead.carry if stage.ahead else {}

    def name(leaf: Node) -> str:
        kind, what = leaf.value
        if kind == "total":
            return f"S_c{what}[c]" if what in ahead else f"n_{what}"
        return {"carry": f"k_{what}", "neuron": f"n_{what}", "final": f"S_{what}[c]", "step": str(what)}[kind]

    roots = [walk.put["dx"], *walk.carry.values()]
    once, kept = Lines(name, prefix="h"), set(stage.scratch)  # once: what is the same at each step
    for node in order([*roots, *stage.between.values()], kept):
        kinds = {"scratch" if leaf in kept else leaf.value[0] for leaf in order([node], kept) if leaf.op == "leaf" or leaf in kept}
        if kinds and kinds <= {"final", "neuron", "total"}:
            once(node)
    lines = Lines(name, {**once.known, **{id(node): f"z{k}" for k, node in enumerate(stage.scratch)}}, prefix="b")
    dx = lines(walk.put["dx"])
    after = [(n, lines(node)) for n, node in walk.carry.items()]
    width = len(stage.scratch)
    text = [f"const V z{k} = sc_at[(t - t0) * {width} + {k}];" for k in range(width)]
    text += [*_loads(program, stage.back_reads, ("a", "x", "g")), *lines.text]
    put = f"A::out(p_dx + (t - {delay}) * M + j, {dx}{_gain(program)}{' * n_scale' if stage.scaled else ''}, n);"
    text.append(f"if (t >= {delay}) {put}" if delay else put)
    text += [f"const V new_{n} = {v};" for n, v in after] + [f"k_{n} = new_{n};" for n, _ in after]
    given = "".join(f"      const V n_{n} = A::get(p_n_{n} + j, n);\n" for n in stage.neurons)
    scale = "      const V n_scale = p_n_scale ? A::get(p_n_scale + j, n) : K(1);\n" if stage.scaled else ""
    held = {once.known[id(n)]: n.op for n in order([walk.put["dx"], *walk.carry.values()], kept) if once.known.get(id(n), "K")[0] == "h"}
    declare = "".join(f"  {'B' if op in BOOLEAN else 'V'} H_{n}[WIDE];\n" for n, op in held.items())
    declare += "".join(f"  V C_{n}[WIDE];\n" for n in walk.start)
    setup = given + "".join(f"      {line}\n" for line in once.text) + "".join(f"      H_{n}[c] = {n};\n" for n in held)
    setup += "".join(f"      C_{n}[c] = K({constant(value)});\n" for n, value in walk.start.items())
    made = {n: f"S_c{n}[c]" if n in ahead else once(stage.between[n]) for n in stage.writes if n not in walk.carry}
    setup += "".join(f"      A::put(p_c_{n} + j, {value}, n);\n" for n, value in made.items())
    load = "".join(f"      const {'B' if op in BOOLEAN else 'V'} {n} = H_{n}[c]; (void){n};\n" for n, op in held.items())
    load += "".join(f"      V k_{n} = C_{n}[c];\n" for n in walk.start)
    save = "".join(f"      C_{n}[c] = k_{n};\n" for n in walk.start)
    left = "".join(f"    A::put(p_c_{n} + j, C_{n}[c], n);\n" for n in stage.writes if n in walk.carry)
    step = _indent("\n".join(text), 8)
    return f"""{declare}{_each(setup)}  for (int64_t t1 = T; t1 > 0;) {{
    const int64_t t0 = (t1 - 1) / TB * TB;
    for (int c = 0; c < NC; ++c) {{
      const int64_t j = j0 + c * L; const int n = M - j < L ? M - j : L; (void)n;
{_block(width)}{given}{scale}{load}      auto one = [&](int64_t t) __attribute__((always_inline)) {{
{step}
      }};
      if (A::WHOLE && t1 - t0 == TB) {{
#pragma GCC unroll 8
        for (int k = TB - 1; k >= 0; --k) one(t0 + k);
      }} else {{
#pragma GCC unroll REST
        for (int64_t t = t1 - 1; t >= t0; --t) one(t);
      }}
{save}    }}
    t1 = t0;
  }}
{_each(left) if left else ""}"""


def _finals(states: list[str]) -> str:
    put = "".join(f"    A::put(p_out_{n} + j, S_{n}[c], n);\n" for n in states)
    finite = " ".join(f"bad |= !(S_{n}[c] - S_{n}[c] == K(0));" for n in states)
    return _each(put + f"    B bad = {{}}; {finite}\n    wrong |= any_(bad);\n")


# ---- the loop over chunks of neurons -------------------------------------------------------------------------------


def _each(body: str) -> str:
    return f"  for (int c = 0; c < NC; ++c) {{\n    const int64_t j = j0 + c * L; const int n = M - j < L ? M - j : L; (void)n;\n{body}  }}\n"


def _kernel(name: str, pointers: tuple[str, ...], body: str, end: str, scratch: int = 0, steps: int | None = None) -> str:
    """All chunks, in parallel; a chunk of whole vectors takes the quick way. `width` is in vectors.

    With `steps`, T is a constant and a chunk is one vector: everything between its loads and stores stays in registers.
    """
    unpack = "\n".join(f"  R* const p_{n} = (R*)p[{k}]; (void)p_{n};" for k, n in enumerate(pointers))
    held = "V* sc"
    large = next((k for k, n in enumerate(pointers) if n in ("s", "dx")), None)
    stream = "false" if large is None else f"T * M * (int64_t)sizeof(R) >= {_LARGE} && M % L == 0 && ((uintptr_t)p[{large}] & 63) == 0"
    choose = "  int64_t width = 32;\n"
    if scratch:
        choose = f"  int64_t width = {_CACHE} / (int64_t)sizeof(V) / (T * {scratch} + 1); width = width > 32 ? 32 : width;\n"
    allocate = (
        f"    V* sc = (V*)aligned_alloc(64, sizeof(V) * ((T + TB - 1) / TB * TB * {scratch} * width + 1));\n" if scratch else "    V* sc = nullptr;\n"
    )
    count = "const int NC"
    if steps:
        choose, allocate, count, held = "  int64_t width = 1;\n", "    V* sc = nullptr;\n", "int", "V*"
        unpack = f"  constexpr int64_t T = {steps}; constexpr int NC = 1; V sc[{max(scratch, 1) * steps}]; (void)sc;\n{unpack}"
    body = body.replace("REST", "8" if steps else "1")
    end = end.replace("REST", "8" if steps else "1")
    return f"""
template <class A> static inline __attribute__((always_inline))
int {name}_chunk(void** p, int64_t{"" if steps else " T"}, int64_t M, int64_t j0, {count}, {held}) {{
{unpack}
  int wrong = 0;
{body}{end}  return wrong;
}}
extern "C" int {name}(void** p, int64_t T, int64_t M, int threads) {{
{choose}  int64_t share = (M + threads - 1) / threads; share = (share + L - 1) / L;
  width = width < share ? width : share; width = width < 1 ? 1 : width;
  const int64_t chunks = (M + width * L - 1) / (width * L);
  int wrong = 0;
  const bool stream = {stream};
#pragma omp parallel num_threads(threads) reduction(|:wrong)
  {{
    Flush flush; (void)flush;
{allocate}#pragma omp for schedule(static)
    for (int64_t i = 0; i < chunks; ++i) {{
      const int64_t j0 = i * width * L, left = M - j0;
      const int nc = left >= width * L ? width : (left + L - 1) / L;
      wrong |= left < nc * L ? {name}_chunk<Part>(p, T, M, j0, nc, sc)
               : stream ? {name}_chunk<Stream>(p, T, M, j0, nc, sc) : {name}_chunk<Quick>(p, T, M, j0, nc, sc);
    }}
    free(sc);
  }}
  return wrong;
}}
"""


_LARGE = 32 << 20  # bytes of an output that no cache holds
_CACHE = 512 * 1024  # of scratch a thread: a part of its second-level cache


def _indent(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.splitlines())
