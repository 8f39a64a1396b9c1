"""Kernels of one time step, for a recurrent layer: the neurons between two matrix products. One text for C++ and CUDA.

`step` takes one step of the neurons: `r` holds weight @ y, the spikes of the step before. Where a backward pass will follow, it keeps
what that needs: the spikes before (`before`), what has arrived (`a`), what was sent (`sent`), or the values `z0`, `z1`...
that the reverse sweep reads. `step_back` takes one step of the sweep that is unfolded through the recurrent weights: `r` holds
weight^T @ dx of the step after. A rule that couples its neurons has the kernels of whole trains as its backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import cpp, cuda, walks
from .cpp import CPP
from .cuda import CUDA
from .emit import Lines, leaves, number
from .program import Program
from .walks import NOW, Language

SOURCES = {"a": "a", "sent": "x"}  # where what a sweep reads of each step is kept


@dataclass(frozen=True)
class Step:
    """A kernel's lines for one neuron, and its pointers: those that it reads and those that it writes."""

    name: str
    lines: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def for_cpu(program: Program, steps: int | None) -> list[cpp.Source]:
    """The kernels of a plan in C++: the forward one, then the backward pass. The step of a recurrent layer's comes in the place of T."""
    whole = [cpp.backward(program, k, steps) for k in range(len(program.stages))] if program.coupled or not program.recurrent else []
    if not program.recurrent:
        return [cpp.forward(program, steps), *whole]
    return [*(_cpp(one) for one in _steps(program, CPP)), *whole]


def for_gpu(program: Program) -> tuple[cuda.Kernel, ...]:
    """The same in CUDA C."""
    if not program.recurrent:
        return cuda.kernels(program)
    made = [cuda.kernel(one.name, list(one.lines), one.reads, one.writes, ("t", "M")) for one in _steps(program, CUDA)]
    return (*made, *(cuda.backward(program, k) for k in range(len(program.stages)) if program.coupled))


def kept(program: Program) -> tuple[str, ...]:
    """What `step` keeps of each step."""
    read = {name for stage in program.stages for name in (*stage.ahead_reads, *stage.back_reads)} | ({"a"} if program.coupled else set())
    values = [] if program.coupled else [f"z{k}" for k in range(len(program.stages[0].scratch))]
    return ("before", *(name for name, source in SOURCES.items() if source in read), *values)


def finals(program: Program) -> tuple[str, ...]:
    """The states after the last step that `step_back` reads."""
    walk = program.stages[0].back
    assert walk is not None
    return tuple(name for kind, name in leaves([*walk.put.values(), *walk.carry.values()], program.stages[0].scratch) if kind == "final")


# ---- the lines -------------------------------------------------------------------------------------------------------


def _steps(program: Program, language: Language) -> list[Step]:
    return [_ahead(program, language), *([] if program.coupled else [_back(program, language)])]


def _ahead(program: Program, language: Language) -> Step:
    rule, traced, get, put, gain = program.rule, program.traced, language.get, language.put, walks.times(program.rule.gain)
    now = get("x", walks.earlier(rule.delay))
    now = f"(t < {rule.delay} ? {get('late', NOW)} : {now})" if rule.delay else now
    lines = Lines(walks.ahead)
    values = {"before": "y", "a": "a"}
    if not program.coupled:
        values |= {f"z{k}": number(node, lines(node)) for k, node in enumerate(program.stages[0].scratch)}
    spike, after = lines(traced.spike), {f"v_{n}": lines(node) for n, node in traced.state.items()}
    text = [f"const V y = {get('y')};", f"const V r = {get('r')};", f"const V a = {now}{gain} + r;"]
    text += [f"const V {n} = {get(n)};" for n in after]
    text += [*lines.text, put("s", spike, NOW), put("y", spike), *(put(n, value) for n, value in after.items())]
    for n in kept(program):
        if n == "sent":  # at the step before: from below, and the layer's own spikes of then
            last = walks.earlier(1)
            text.append(f"if (p_sent && t > 0) {put('sent', get('x', last) + gain + ' + r', last)}")
        else:
            text.append(f"if (p_{n}) {put(n, values[n], NOW)}")
    text.append(f"if (p_record) {put('record', after['v_v'], NOW)}")
    return Step("step", tuple(text), ("x", *(("late",) if rule.delay else ()), "r"), ("y", "s", *after, *kept(program), "record"))


def _back(program: Program, language: Language) -> Step:
    (stage,), get = program.stages, language.get
    assert stage.back is not None and stage.ahead is None
    back = walks.back(program, stage, language)
    text = [f"const V g = {get('g', NOW)} + {get('r')};"]
    text += [f"const V {n} = {get(source, NOW)};" for source, n in SOURCES.items() if n in stage.back_reads]
    text += [walks.found(k, node, get(f"z{k}", NOW)) for k, node in enumerate(stage.scratch)]
    text += [*(f"const V {n} = {get(n)};" for n in back.after), *(f"const V v_{n} = {get(f'f_{n}')};" for n in finals(program))]
    text += [*back.once.text, *back.lines, *back.puts, *(language.put(n, value) for n, value in back.after.items())]
    reads = ("g", "r", *(n for n in kept(program) if n != "before"), *(f"f_{n}" for n in finals(program)))
    return Step("step_back", tuple(text), reads, ("dx", *back.after))


# ---- C++ -------------------------------------------------------------------------------------------------------------


def _cpp(step: Step) -> cpp.Source:
    pointers = (*step.reads, *step.writes)
    unpack = "".join(f"    R* const p_{n} = (R*)p[{k}]; (void)p_{n};\n" for k, n in enumerate(pointers))
    lines = "".join(f"      {line}\n" for line in step.lines)
    text = f"""
extern "C" int {step.name}(void** p, int64_t t, int64_t M, int threads) {{
  const int64_t chunks = (M + L - 1) / L;
  const auto some = [=](int64_t first, int64_t last) {{
    Flush flush; (void)flush;
{unpack}    const auto one = [&](auto kind, int64_t j, int n) __attribute__((always_inline)) {{
      typedef decltype(kind) A; (void)n;
{lines}    }};
    for (int64_t c = first; c < last; ++c) {{
      const int n = M - c * L < L ? M - c * L : L;
      if (n == L) one(Quick(), c * L, L); else one(Part(), c * L, n);
    }}
  }};
  if (threads == 1) return some(0, chunks), 0;  // a team of one costs system calls
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int k = 0; k < threads; ++k) some(chunks * k / threads, chunks * (k + 1) / threads);
  return 0;
}}
"""
    return cpp.Source(step.name, text, pointers)
