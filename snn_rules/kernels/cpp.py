"""A rule's kernels in C++ for the CPU: chunks of neurons, time inside, neurons in vector registers.

Each kernel is `int kernel(void** p, int64 T, int64 M, int threads)`; `Source` names the pointers in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from .chunks import each, indent, kernel
from .emit import Lines, condition, constant, leaves, of_the_neuron
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
    pointers = program.pointers[0]
    text = _begin(program) + _ahead(program, steps) + "  if (p_record) ahead(0, T, NO{}, YES{}); else ahead(0, T, NO{}, NO{});\n" + _finals(program)
    return Source("forward", kernel("forward", pointers, text, steps=steps), pointers)


def backward(program: Program, index: int, steps: int | None = None) -> Source:
    """A part of the backward pass: `dx` if it is the last, and values of each neuron."""
    stage, states, name = program.stages[index], list(program.rule.state), f"backward{index}"
    pointers = program.pointers[1 + index]
    text = _begin(program, stage) + _ahead(program, steps, stage)
    if stage.back:
        text += _there_and_back(program, steps, stage)
    else:
        text += "  ahead(0, T, NO{}, YES{});\n" + each("".join(f"    A::put(p_c_{n} + j, S_f_{n}[c], n);\n" for n in stage.writes))
    few = 1 if stage.ahead else 4  # vectors: with two sweeps, one has enough to compute
    return Source(name, kernel(name, pointers, text, _size(stage), len(states), steps, few), pointers)


# ---- the walk through the steps ------------------------------------------------------------------------------------


def _gain(program: Program) -> str:
    return "" if program.gain == 1.0 else f" * K({constant(program.gain)})"


def _step(program: Program, stage: Stage | None = None) -> str:
    """One step: the input has arrived in `a`; states are `v_NAME`, what a sweep carries along is `f_NAME`. Without a stage: the forward kernel's."""

    def name(leaf: Node) -> str:
        kind, what = leaf.value
        return {"state": f"v_{what}", "carry": f"f_{what}", "step": str(what), "neuron": f"n_{what}", "total": f"n_{what}"}[kind]

    lines = Lines(name)
    kept = [f"{at} = {_packed(node, lines)};" for node, at in _places(stage)] if stage else []
    spike = None if stage else lines(program.traced.spike)
    after = {f"v_{n}": lines(node) for n, node in program.traced.state.items()}
    text = [f"const V a = {_arrival(program)};", *lines.text]
    text += [f"A::fetch(p_x + (t - {program.delay}) * M + j + AHEAD);"] if stage else []  # the forward kernel is no faster for it
    text += ["A::fetch(p_g + t * M + j + AHEAD);"] if stage and "g" in stage.ahead_reads else []
    if stage and stage.ahead:
        sums = Lines(name, lines.known, prefix="f")
        totals = {f"f_{n}": sums(node) for n, node in stage.ahead.carry.items()}
        text += ["if constexpr (more.value) {", *_loads(program, stage.ahead_reads, ("x", "g")), *sums.text, *_assign(totals), "}"]
    text += ["if constexpr (keep.value) {", *kept, "}"] if kept else []
    text += [] if stage else [f"A::out(p_s + t * M + j, {spike}, n);"]
    text += _assign(after)
    text += [] if stage else ["if constexpr (more.value) A::put(p_record + t * M + j, v_v, n);"]
    return "\n".join(text)


def _assign(values: dict[str, str]) -> list[str]:
    """All at once: a new value may be made of the others' old ones."""
    return [*(f"const V new_{n} = {value};" for n, value in values.items()), *(f"{n} = new_{n};" for n in values)]


def _loads(program: Program, reads: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    """Lines that load the step's own values."""
    sources = {
        "a": _arrival(program),
        "x": f"A::get(p_{program.sent} + t * M + j, n){_gain(program)}",
        "g": "A::get(p_g + t * M + j, n)",
    }
    return [f"const V {name} = {sources[name]};" for name in wanted if name in reads]


def _arrival(program: Program) -> str:
    """What arrives at the neuron at step t."""
    return _delayed(program) + _gain(program)


def _delayed(program: Program) -> str:
    """The input of `delay` steps before step t, at first the queue of the call before."""
    delay = program.delay
    now = f"A::get(p_x + (t - {delay}) * M + j, n)" if delay else "A::get(p_x + t * M + j, n)"
    return f"(t < {delay} ? p_late ? A::get(p_late + t * M + j, n) : K(0) : {now})" if delay else now


def _variables(program: Program, stage: Stage | None) -> dict[str, float]:
    """What the walk ahead changes, and the values at its start."""
    carries = stage.ahead.start if stage and stage.ahead else {}
    return {**{f"v_{n}": value for n, value in program.rule.state.items()}, **{f"f_{n}": value for n, value in carries.items()}}


def _begin(program: Program, stage: Stage | None = None) -> str:
    """Their first values, in the arrays `S_VARIABLE`."""
    start, given = _variables(program, stage), {f"v_{n}": f"p_in_{n} ? A::get(p_in_{n} + j, n) : " for n in program.rule.state}
    declare = "".join(f"  V S_{n}[WIDE];\n" for n in start)
    return declare + each("".join(f"    S_{n}[c] = {given.get(n, '')}K({constant(value)});\n" for n, value in start.items()))


def _ahead(program: Program, steps: int | None, stage: Stage | None = None) -> str:
    """The walk through some steps, TB at a time with the state in registers, from and to the arrays `S_VARIABLE`.

    It keeps what the way back needs of each step, or else marks the state at the first step of each part. `more` is what only the
    first walk does: the sums of a sweep that goes along, or a record of the potential.
    """
    states, scratch = list(program.rule.state), bool(stage and stage.scratch)
    held = _variables(program, stage)
    mark = " ".join(f"mark[(t0 / PART * NC + c) * {len(states)} + {k}] = v_{n};" for k, n in enumerate(states))
    keep = " ".join(f"A::put(p_marks + (t0 / PART * {len(states)} + {k}) * M + j, v_{n}, n);" for k, n in enumerate(states))
    reads = leaves(stage.ahead.carry.values()) if stage and stage.ahead else []
    given = " ".join(f"const V n_{n} = A::get(p_n_{n} + j, n);" for n in (stage.neurons if stage else ()) if {("neuron", n), ("total", n)} & {*reads})
    marks = f"if constexpr (!keep.value) if (!p_marks && t0 % PART == 0) {{ {mark} }}" if scratch else ""
    return f"""  auto ahead = [&](int64_t from, int64_t to, auto keep, auto more) __attribute__((always_inline)) {{
    for (int64_t t0 = from; t0 < to; t0 += TB)
    for (int c = 0; c < NC; ++c) {{
      const int64_t j = j0 + c * L; const int n = M - j < L ? M - j : L; (void)n;
      {_block(stage) if stage else ""}{" ".join(f"V {n} = S_{n}[c];" for n in held)} {given}
      {marks if stage else f"if (p_marks && t0 % PART == 0) {{ {keep} }}"}
      auto one = [&](int64_t t) __attribute__((always_inline)) {{
{indent(_step(program, stage), 8)}
      }};
      if (A::WHOLE && to - t0 >= TB) {{
#pragma GCC unroll 8
        for (int k = 0; k < TB; ++k) one(t0 + k);
      }} else {{
#pragma GCC unroll {8 if steps else 1}
        for (int64_t t = t0; t < (to - t0 < TB ? to : t0 + TB); ++t) one(t);
      }}
      {" ".join(f"S_{n}[c] = {n};" for n in held)}
    }}
  }};
"""


# ---- what the way back finds in memory -----------------------------------------------------------------------------


def _size(stage: Stage) -> int:
    """Vectors of scratch for TB steps of a vector of neurons: numbers, then conditions, four of which take the room of one number."""
    flags = sum(condition(node) is not None for node in stage.scratch)
    return (len(stage.scratch) - flags) * 8 + flags * 2


def _block(stage: Stage) -> str:
    """Where the scratch of a block of TB steps begins: it lies in the order in which both walks touch it."""
    if not stage.scratch:
        return ""
    numbers = sum(condition(node) is None for node in stage.scratch)
    flags = f"F* const fl_at = (F*)(sc_at + {numbers} * TB); (void)fl_at;\n      "
    return f"V* const sc_at = sc + ((t0 - from) / TB * NC + c) * {_size(stage)}; (void)sc_at;\n      " + flags


def _places(stage: Stage) -> list[tuple[Node, str]]:
    """Each value and where it lies at step t."""
    flags = [node for node in stage.scratch if condition(node) is not None]
    numbers = [node for node in stage.scratch if condition(node) is None]
    places = {
        id(node): f"{array}[(t - t0) * {len(some)} + {k}]" for array, some in (("sc_at", numbers), ("fl_at", flags)) for k, node in enumerate(some)
    }
    return [(node, places[id(node)]) for node in stage.scratch]


def _packed(node: Node, lines: Lines) -> str:
    asked = condition(node)
    return lines(node) if asked is None else f"pack({lines(asked)})"


def _unpacked(node: Node, name: str, at: str) -> str:
    if condition(node) is None:
        return f"const V {name} = {at};"
    return f"const B {name} = unpack({at});" if node.op in BOOLEAN else f"const V {name} = unpack({at}) ? K(1) : K(0);"


# ---- and back --------------------------------------------------------------------------------------------------------


def _there_and_back(program: Program, steps: int | None, stage: Stage) -> str:
    """To the end of the train and back. A train longer than `length` is walked back part by part, each of which is walked
    ahead from the state that was marked there, by the forward kernel or by a first walk, so that its scratch stays in the cache."""
    states = program.rule.state
    setup, back, end = _back(program, steps, stage)
    at = [(n, f"(part * {len(states)} + {k}) * M + j", f"(part * NC + c) * {len(states)} + {k}") for k, n in enumerate(states)]
    start = each("".join(f"    S_v_{n}[c] = p_marks ? A::get(p_marks + {whole}, n) : mark[{own}];\n" for n, whole, own in at))
    first = "" if stage.ahead else "if (!p_marks) "
    return f"""  const bool once = T <= length;
  const auto again = [&](int64_t part) {{
    const int64_t from = part * PART, to = T - from < PART ? T : from + PART;
{indent(start, 2)}
    ahead(from, to, YES{{}}, NO{{}});
  }};
  int64_t part = once ? 0 : (T - 1) / PART;
  if (once) ahead(0, T, YES{{}}, YES{{}}); else {{ {first}ahead(0, T, NO{{}}, YES{{}}); again(part); }}
{setup}  for (;; --part) {{
    const int64_t from = part * PART, to = once || T - from < PART ? T : from + PART;
{back}    if (part == 0) break;
    again(part - 1);
  }}
{end}"""


def _back(program: Program, steps: int | None, stage: Stage) -> tuple[str, str, str]:
    """The reverse sweep: what comes before it, once a neuron; the walk from step `to` to step `from`; what it leaves behind.

    Its carries are in the arrays `C_NAME`, states after the last step in `F_NAME`, other values of the neuron in `H_NAME`.
    """
    walk, delay, kept = stage.back, program.delay, stage.scratch
    assert walk is not None
    ahead = stage.ahead.carry if stage.ahead else {}

    def name(leaf: Node) -> str:
        kind, what = leaf.value
        if kind == "total":
            return f"S_f_{what}[c]" if what in ahead else f"n_{what}"
        return {"carry": f"k_{what}", "neuron": f"n_{what}", "final": f"F_{what}[c]", "step": str(what)}[kind]

    roots = [*walk.put.values(), *walk.carry.values()]
    once = Lines(name, prefix="h")  # what is the same at each step
    for node in order([*roots, *stage.between.values()], kept):
        if of_the_neuron(node, kept):
            once(node)
    lines = Lines(name, {**once.known, **{id(node): f"z{k}" for k, node in enumerate(stage.scratch)}}, prefix="b")
    made, after = ({n: lines(node) for n, node in nodes.items()} for nodes in (walk.put, walk.carry))

    puts = [f"A::out(p_{n} + (t - {delay}) * M + j, {value}{_gain(program)}{' * n_scale' if stage.scaled else ''}, n);" for n, value in made.items()]
    body = [_unpacked(node, f"z{k}", at) for k, (node, at) in enumerate(_places(stage))]
    body += ["A::fetch(p_g + t * M + j + BACK);"] if "g" in stage.back_reads else []
    body += [*_loads(program, stage.back_reads, ("a", "x", "g")), *lines.text, *(f"if (t >= {delay}) {put}" if delay else put for put in puts)]
    body += _assign({f"k_{n}": value for n, value in after.items()})
    held = {once.known[id(n)]: "B" if n.op in BOOLEAN else "V" for n in order(roots, kept) if once.known.get(id(n), "K")[0] == "h"}
    finals = [n for n in program.rule.state if any(leaf.value == ("final", n) for leaf in order([*roots, *stage.between.values()], kept))]
    given = "".join(f"      const V n_{n} = A::get(p_n_{n} + j, n);\n" for n in stage.neurons)
    given_on = {n: f"S_f_{n}[c]" if n in ahead else once(stage.between[n]) for n in stage.writes if n not in walk.carry}

    setup = "".join(f"  {kind} H_{n}[WIDE];\n" for n, kind in held.items())
    setup += "".join(f"  V {n}[WIDE];\n" for n in [*(f"F_{n}" for n in finals), *(f"C_{n}" for n in walk.start)])
    first = [*(f"F_{n}[c] = S_v_{n}[c];" for n in finals), *once.text, *(f"H_{n}[c] = {n};" for n in held)]
    first += [f"C_{n}[c] = K({constant(value)});" for n, value in walk.start.items()]
    first += [f"A::out(p_c_{n} + j, {value}, n);" for n, value in given_on.items()]
    if delay and puts:  # the last inputs never arrive
        first.append(f"for (int64_t t = T < {delay} ? 0 : T - {delay}; t < T; ++t) A::out(p_dx + t * M + j, K(0), n);")
    setup += each(given + indent("\n".join(first), 6) + "\n")
    scale = "      const V n_scale = p_n_scale ? A::get(p_n_scale + j, n) : K(1);\n" if stage.scaled else ""
    load = " ".join([*(f"const {kind} {n} = H_{n}[c];" for n, kind in held.items()), *(f"V k_{n} = C_{n}[c];" for n in walk.start)])
    back = f"""    for (int64_t t1 = to, t0; t1 > from; t1 = t0) {{
    t0 = from + (t1 - 1 - from) / TB * TB;
    for (int c = 0; c < NC; ++c) {{
      const int64_t j = j0 + c * L; const int n = M - j < L ? M - j : L; (void)n;
      {_block(stage)}{load}
{given}{scale}      auto one = [&](int64_t t) __attribute__((always_inline)) {{
{indent(chr(10).join(body), 8)}
      }};
      if (A::WHOLE && t1 - t0 == TB) {{
#pragma GCC unroll 8
        for (int k = TB - 1; k >= 0; --k) one(t0 + k);
      }} else {{
#pragma GCC unroll {8 if steps else 1}
        for (int64_t t = t1 - 1; t >= t0; --t) one(t);
      }}
      {" ".join(f"C_{n}[c] = k_{n};" for n in walk.start)}
    }}
    }}
"""
    left = [n for n in stage.writes if n in walk.carry]
    return setup, back, each("".join(f"    A::out(p_c_{n} + j, C_{n}[c], n);\n" for n in left)) if left else ""


def _finals(program: Program) -> str:
    """The states after the last step, and the inputs that are still on their way: those of the steps to come."""
    states, late = program.rule.state, f"A::put(p_out_late + (t - T) * M + j, {_delayed(program)}, n);"
    put = "".join(f"    A::out(p_out_{n} + j, S_v_{n}[c], n);\n" for n in states)
    put += f"    for (int64_t t = T; t < T + {program.delay}; ++t) {late}\n" if program.delay else ""
    finite = " ".join(f"bad |= !(S_v_{n}[c] - S_v_{n}[c] == K(0));" for n in states)
    return each(put + f"    B bad = {{}}; {finite}\n    wrong |= bad;\n")
