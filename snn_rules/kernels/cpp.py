"""A rule's kernels in C++ for the CPU: chunks of neurons, time inside, neurons in vector registers.

Each kernel is `int kernel(void** p, int64 T, int64 M, int threads)`; `Source` names the pointers in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import walks
from .chunks import each, indent, kernel
from .emit import Lines, condition, constant, leaves
from .graph import BOOLEAN, Node, order
from .program import Program, Stage

CPP = walks.Language("int64_t", "A::get(p_{name} + {at}, n)", "A::put(p_{name} + {at}, {value}, n);", "A::out(p_{name} + {at}, {value}, n);")


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
        text += "  ahead(0, T, NO{}, YES{});\n" + each("".join(f"    {CPP.put(f'c_{n}', f'S_f_{n}[c]')}\n" for n in stage.writes))
    few = 1 if stage.ahead else 4  # vectors: with two sweeps, one has enough to compute
    return Source(name, kernel(name, pointers, text, _size(stage), len(states), steps, few), pointers)


# ---- the walk through the steps ------------------------------------------------------------------------------------


def _step(program: Program, stage: Stage | None = None) -> str:
    """One step of the walk ahead, of the forward kernel without a stage."""
    lines = Lines(walks.ahead)
    kept = [f"{at} = {_packed(node, lines)};" for node, at in _places(stage)] if stage else []
    spike = None if stage else lines(program.traced.spike)
    after = {f"v_{n}": lines(node) for n, node in program.traced.state.items()}
    text = [*walks.loads(program, CPP, ["a"]), *lines.text]
    text += [f"A::fetch(p_x + {walks.earlier(program.delay)} + AHEAD);"] if stage else []  # the forward kernel is no faster for it
    text += ["A::fetch(p_g + t * M + j + AHEAD);"] if stage and "g" in stage.ahead_reads else []
    if stage and stage.ahead:
        sums, own = Lines(walks.ahead, lines.known, prefix="f"), [n for n in stage.ahead_reads if n != "a"]
        totals = {f"f_{n}": sums(node) for n, node in stage.ahead.carry.items()}
        text += ["if constexpr (more.value) {", *walks.loads(program, CPP, own), *sums.text, *walks.assign(totals), "}"]
    text += ["if constexpr (keep.value) {", *kept, "}"] if kept else []
    text += [] if spike is None else [CPP.out("s", spike, walks.NOW)]
    text += walks.assign(after)
    text += [] if stage else ["if constexpr (more.value) " + CPP.put("record", "v_v", walks.NOW)]
    return "\n".join(text)


def _variables(program: Program, stage: Stage | None) -> dict[str, float]:
    """What the walk ahead changes, and the values at its start."""
    carries = stage.ahead.start if stage and stage.ahead else {}
    return {**{f"v_{n}": value for n, value in program.rule.state.items()}, **{f"f_{n}": value for n, value in carries.items()}}


def _begin(program: Program, stage: Stage | None = None) -> str:
    """Their first values, in the arrays `S_VARIABLE`."""
    start, given = _variables(program, stage), {f"v_{n}": f"p_in_{n} ? {CPP.get(f'in_{n}')} : " for n in program.rule.state}
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
    keep = " ".join(CPP.put("marks", f"v_{n}", f"(t0 / PART * {len(states)} + {k}) * M + j") for k, n in enumerate(states))
    reads = leaves(stage.ahead.carry.values()) if stage and stage.ahead else []
    given = " ".join(f"const V n_{n} = {CPP.get(f'n_{n}')};" for n in (stage.neurons if stage else ()) if {("neuron", n), ("total", n)} & {*reads})
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
    start = each("".join(f"    S_v_{n}[c] = p_marks ? {CPP.get('marks', whole)} : mark[{own}];\n" for n, whole, own in at))
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

    What it carries is in the arrays `C_VARIABLE`, states after the last step in `F_VARIABLE`, what else is of the neuron in `H_VARIABLE`.
    """
    walk, back = stage.back, walks.back(program, stage, CPP)
    assert walk is not None
    roots = [*walk.put.values(), *walk.carry.values()]
    once = {name: "B" if n.op in BOOLEAN else "V" for n in order(roots, stage.scratch) if (name := back.once.known.get(id(n), "K"))[0] == "h"}
    finals = [f"v_{n}" for kind, n in leaves([*roots, *stage.between.values()], stage.scratch) if kind == "final"]
    carries = {f"k_{n}": value for n, value in walk.start.items()}
    totals = list(stage.ahead.carry) if stage.ahead else []
    of_neuron = "".join(f"      const V n_{n} = {CPP.get(f'n_{n}')};\n" for n in stage.neurons)
    of_neuron += "".join(f"      const V f_{n} = S_f_{n}[c];\n" for n in totals)

    setup = "".join(f"  {kind} H_{n}[WIDE];\n" for n, kind in once.items())
    setup += "".join(f"  V {n}[WIDE];\n" for n in [*(f"F_{n}" for n in finals), *(f"C_{n}" for n in carries)])
    first = [*(f"const V {n} = F_{n}[c] = S_{n}[c];" for n in finals), *back.once.text, *(f"H_{n}[c] = {n};" for n in once)]
    first += [f"C_{n}[c] = K({constant(value)});" for n, value in carries.items()]
    first += [*(CPP.out(f"c_{n}", value) for n, value in back.left.items()), *back.beyond]
    setup += each(of_neuron + indent("\n".join(first), 6) + "\n")

    load = [*(f"const {kind} {n} = H_{n}[c];" for n, kind in once.items()), *(f"const V {n} = F_{n}[c];" for n in finals)]
    load += [f"V {n} = C_{n}[c];" for n in carries]
    load += [f"const V n_scale = p_n_scale ? {CPP.get('n_scale')} : K(1);"] if stage.scaled else []
    body = [_unpacked(node, f"z{k}", at) for k, (node, at) in enumerate(_places(stage))]
    body += ["A::fetch(p_g + t * M + j + BACK);"] if "g" in stage.back_reads else []
    body += [*walks.loads(program, CPP, stage.back_reads), *back.lines, *back.puts, *walks.assign(back.after)]
    walked = f"""    for (int64_t t1 = to, t0; t1 > from; t1 = t0) {{
    t0 = from + (t1 - 1 - from) / TB * TB;
    for (int c = 0; c < NC; ++c) {{
      const int64_t j = j0 + c * L; const int n = M - j < L ? M - j : L; (void)n;
      {_block(stage)}{" ".join(load)}
{of_neuron}      auto one = [&](int64_t t) __attribute__((always_inline)) {{
{indent(chr(10).join(body), 8)}
      }};
      if (A::WHOLE && t1 - t0 == TB) {{
#pragma GCC unroll 8
        for (int k = TB - 1; k >= 0; --k) one(t0 + k);
      }} else {{
#pragma GCC unroll {8 if steps else 1}
        for (int64_t t = t1 - 1; t >= t0; --t) one(t);
      }}
      {" ".join(f"C_{n}[c] = {n};" for n in carries)}
    }}
    }}
"""
    end = "".join(f"    {CPP.out(f'c_{n}', f'C_k_{n}[c]')}\n" for n in stage.writes if n in walk.carry)
    return setup, walked, each(end) if end else ""


def _finals(program: Program) -> str:
    """The states after the last step, and the inputs that are still on their way: those of the steps to come."""
    states, late = program.rule.state, CPP.put("out_late", walks.delayed(program, CPP), "(t - T) * M + j")
    put = "".join(f"    {CPP.out(f'out_{n}', f'S_v_{n}[c]')}\n" for n in states)
    put += f"    for (int64_t t = T; t < T + {program.delay}; ++t) {late}\n" if program.delay else ""
    finite = " ".join(f"bad |= !(S_v_{n}[c] - S_v_{n}[c] == K(0));" for n in states)
    return each(put + f"    B bad = {{}}; {finite}\n    wrong |= bad;\n")
