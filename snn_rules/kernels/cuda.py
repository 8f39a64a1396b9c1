"""A rule's kernels in CUDA C: a thread a neuron, time inside, the state in registers.

The operations and their order are those of the C++ kernels, so that the results agree bit for bit. A backward kernel
walks forward again from `x`; what its reverse sweep needs of each step lies in `scratch[T, K, W]`, for the `W` neurons
from `j0` on that one launch serves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import walks
from .emit import Lines, constant, kind_of
from .prelude import DOUBLE, FLOAT, HALF, exponential
from .program import Program, Stage

CUDA = walks.Language("N", "p_{name}[{at}]", "p_{name}[{at}] = {value};", "p_{name}[{at}] = {value};")
BLOCK = 256
OPTIONS = ("--std=c++17", "--fmad=false", "-ftz=true")  # a fused multiply-add flips a spike here and there

PRELUDE = """\
typedef {real} R;
typedef long long N;
typedef R V;
typedef bool B;
#define INFINITY __longlong_as_double(0x7ff0000000000000LL)
#define K(c) ((R)(c))
[[maybe_unused]] static __device__ __forceinline__ V min_(V a, V b) {{ return a > b ? b : a; }}
[[maybe_unused]] static __device__ __forceinline__ V max_(V a, V b) {{ return a < b ? b : a; }}
[[maybe_unused]] static __device__ __forceinline__ V fma_(V a, V b, V c) {{ return {fused}; }}
[[maybe_unused]] static __device__ __forceinline__ V fnma_(V a, V b, V c) {{ return fma_(-a, b, c); }}
[[maybe_unused]] static __device__ __forceinline__ V scale_(V k) {{ return {as_real}({as_integer}(k) << {mantissa}); }}
{exp}
{outside}
"""

# a half in memory, a float wherever its value is used
OUTSIDE = """\
typedef unsigned Bits;
#define N(c) ((Bits)(c))
static __device__ __forceinline__ V real_(Bits b) { return __uint_as_float(b); }
static __device__ __forceinline__ Bits bits_(V v) { return __float_as_uint(v); }
%s
struct H {
  unsigned short held;
  __device__ __forceinline__ operator R() const { return widen_(held); }
  __device__ __forceinline__ void operator=(R v) { held = narrow_(v); }
};"""


@dataclass(frozen=True)
class Kernel:
    """A kernel's text and its parameters in order: pointers that it reads, pointers that it writes, to integers, sizes."""

    name: str
    text: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    sizes: tuple[str, ...]
    scratch: int = 0  # values of each step and neuron that it keeps in `scratch`
    integers: tuple[str, ...] = ()  # read, of int64

    @property
    def parameters(self) -> tuple[tuple[str, str], ...]:
        """(C type, name) of each."""
        made = [*((f"const {kind_of(n)}*", n) for n in self.reads), *((f"{kind_of(n)}*", n) for n in self.writes)]
        return (*made, *(("const N*", n) for n in self.integers), *(("N", n) for n in self.sizes))


def prelude(dtype: torch.dtype) -> str:
    """For tensors of `dtype`: in half precision, the state is float32."""
    values: dict[str, Any] = dict(DOUBLE if dtype == torch.float64 else FLOAT)
    if dtype == torch.float64:
        values.update(as_real="__longlong_as_double", as_integer="__double_as_longlong", fused="a * b + c")
    else:
        values.update(as_real="__int_as_float", as_integer="__float_as_int", fused="__fmaf_rn(a, b, c)")
    qualifiers = "[[maybe_unused]] static __device__ __forceinline__"
    outside = OUTSIDE % HALF[dtype].format(qualifiers=qualifiers) if dtype in HALF else "typedef R H;"
    return PRELUDE.format(**values, exp=exponential(values, qualifiers), outside=outside)


def kernels(program: Program) -> tuple[Kernel, ...]:
    """The forward kernel, then one for each part of the backward pass."""
    return (_forward(program), *(backward(program, k) for k in range(len(program.stages))))


def source(kernels: Iterable[Kernel], dtype: torch.dtype) -> str:
    """The whole translation unit."""
    return prelude(dtype) + "".join(kernel.text for kernel in kernels)


# ---- the walk through the steps --------------------------------------------------------------------------------------


def _forward(program: Program) -> Kernel:
    """Spikes and the state after the last step; the potential of each step where a `record` is given."""
    states = list(program.rule.state)
    lines = Lines(walks.ahead)
    spike, after = lines(program.traced.spike), {f"v_{n}": lines(node) for n, node in program.traced.state.items()}
    body = [*walks.loads(program, CUDA, ["a"]), *lines.text, CUDA.out("s", spike, walks.NOW), *walks.assign(after)]
    body += ["if (p_record) " + CUDA.put("record", "v_v", walks.NOW)]
    text = [*_begin(program), *_loop("N t = 0; t < T; ++t", body), *(CUDA.out(f"out_{n}", f"v_{n}") for n in states)]
    late = ("out_late",) if program.delay else ()
    if late:  # the inputs that are still on their way: those of the steps to come
        text += _loop(f"N t = T; t < T + {program.delay}; ++t", [CUDA.put("out_late", walks.delayed(program, CUDA), "(t - T) * M + j")])
    reads = ("x", *(("late",) if program.delay else ()), *(f"in_{n}" for n in states))
    return kernel("forward", text, reads, ("s", *(f"out_{n}" for n in states), *late, "record"), ("T", "M"))


def backward(program: Program, index: int) -> Kernel:
    """A part of the backward pass: `dx` if it is the last, and values of each neuron."""
    stage, states = program.stages[index], list(program.rule.state)
    lines = Lines(walks.ahead)
    keep = [f"{_place(stage, k)} = {lines(node)};" for k, node in enumerate(stage.scratch)]
    after = {f"v_{n}": lines(node) for n, node in program.traced.state.items()}
    after |= {f"f_{n}": lines(node) for n, node in stage.ahead.carry.items()} if stage.ahead else {}
    body = [*walks.loads(program, CUDA, dict.fromkeys(["a", *stage.ahead_reads])), *lines.text, *keep, *walks.assign(after)]
    text = [*_begin(program, stage), *_loop("N t = 0; t < T; ++t", body)]
    text += _reverse(program, stage) if stage.back else [f"p_c_{n}[j] = f_{n};" for n in stage.writes]
    given = dict.fromkeys([*(f"n_{n}" for n in stage.neurons), *(("n_scale",) if stage.scaled else ())])
    reads = ("x", *(("late",) if program.delay else ()), *(("sent",) if program.recurrent else ()), "g", *(f"in_{n}" for n in states), *given)
    writes = (*(("dx",) if stage.back else ()), *(f"c_{n}" for n in stage.writes))
    return kernel(f"backward{index}", text, reads, writes, ("T", "M", "j0", "W"), len(stage.scratch))


def _place(stage: Stage, k: int) -> str:
    """Where a value of the step lies."""
    return f"scratch[(t * {len(stage.scratch)} + {k}) * W + i]"


def _begin(program: Program, stage: Stage | None = None) -> list[str]:
    """What is of the neuron, and the variables at their start values."""
    given = dict.fromkeys([*stage.neurons, *(("scale",) if stage.scaled else ())]) if stage else {}
    text = [f"const V n_{n} = p_n_{n}{' ? p_n_scale[j] : K(1)' if n == 'scale' else '[j]'};" for n in given]
    text += [f"V v_{n} = p_in_{n} ? p_in_{n}[j] : K({constant(value)});" for n, value in program.rule.state.items()]
    return text + ([f"V f_{n} = K({constant(value)});" for n, value in stage.ahead.start.items()] if stage and stage.ahead else [])


# ---- the walk back ---------------------------------------------------------------------------------------------------


def _reverse(program: Program, stage: Stage) -> list[str]:
    walk, back = stage.back, walks.back(program, stage, CUDA)
    assert walk is not None
    step = [walks.found(k, node, _place(stage, k)) for k, node in enumerate(stage.scratch)]
    step += [*walks.loads(program, CUDA, stage.back_reads), *back.lines, *back.puts, *walks.assign(back.after)]
    left = {n: f"k_{n}" for n in walk.carry} | back.left
    start = [*(f"V k_{n} = K({constant(value)});" for n, value in walk.start.items()), *back.beyond, *back.once.text]
    return [*start, *_loop("N t = T - 1; t >= 0; --t", step), *(CUDA.out(f"c_{n}", left[n]) for n in stage.writes)]


# ---- text ------------------------------------------------------------------------------------------------------------


def _loop(over: str, body: list[str]) -> list[str]:
    return [f"for ({over}) {{", *(f"  {line}" for line in body), "}"]


def kernel(name: str, body: list[str], reads: tuple[str, ...], writes: tuple[str, ...], sizes: tuple[str, ...], scratch: int = 0) -> Kernel:
    """A thread a neuron: the `i`-th of the `M`, or of the `W` from `j0` on; its place in an array is `j`."""
    head = ["if (i >= W) return;", "const N j = j0 + i;"] if "W" in sizes else ["if (i >= M) return;", "const N j = i;"]
    return threads(Kernel(name, "", reads, (*writes, "scratch") if scratch else writes, sizes, scratch), [*head, *body])


def threads(made: Kernel, body: list[str]) -> Kernel:
    """The kernel with its text: `body` is what thread `i` does."""
    said = [f"{kind} __restrict__ {_pointer(n)}" if kind.endswith("*") else f"const {kind} {n}" for kind, n in made.parameters]
    lines = "".join(f"  {line}\n" for line in ["const N i = (N)blockIdx.x * blockDim.x + threadIdx.x;", *body])
    text = f'\nextern "C" __global__ void __launch_bounds__({BLOCK}) {made.name}(\n    {", ".join(said)}) {{\n{lines}}}\n'
    return replace(made, text=text)


def _pointer(name: str) -> str:
    return name if name == "scratch" else f"p_{name}"
