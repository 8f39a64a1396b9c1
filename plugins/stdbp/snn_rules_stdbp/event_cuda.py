"""The event layer's kernels in CUDA C, around the lines that `STDBP.event`, `pull` and `causal` trace to.

Forward: torch sorts each sample's inputs; a thread walks them for one neuron of one sample, its state in registers.
Backward: a thread owns one sum and takes its terms in the order of the C++ kernels, so no two threads add to one number.
Weights that are few get several threads each, a part of the samples for each; torch adds the parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snn_rules.kernels.cuda import Kernel, threads
from snn_rules.kernels.emit import Lines, constant
from snn_rules.kernels.graph import Graph, Leaves, Node

if TYPE_CHECKING:
    from .rule import STDBP

SIZES = ("rows", "ins", "outs")
LANES = "constexpr N LANES = 64 / sizeof(R);"  # as the C++ kernels sum


def kernels(rule: STDBP) -> tuple[Kernel, ...]:
    """In the order in which they run: the spikes of a layer; what each pulls; the gradient of the weights; that of the times."""
    return _forward(rule), _pull(rule), _weights(rule), _times(rule)


def _forward(rule: STDBP) -> Kernel:
    graph = Graph()
    m = Leaves(lambda name: graph.leaf("given" if name == "now" else "state", name))
    after = {name: graph.lift(node) for name, node in rule.event(m, graph.leaf("given", "w"), graph.leaf("given", "dt")).items()}
    lines = Lines(lambda leaf: leaf.value[1] if leaf.value[0] == "given" else f"v_{leaf.value[1]}")
    values = {name: lines(node) for name, node in after.items()}
    body = [
        "if (i >= rows * outs) return;",
        "const N row = i / outs, j = i - row * outs;",
        *(f"V v_{name} = K({constant(value)});" for name, value in rule.event_state.items()),
        "V now = K(0);",
        "const auto arrives = [&](V w, V dt) {",
        *(f"  {line}" for line in lines.text),
        *(f"  const V new_{name} = {value};" for name, value in values.items()),
        *(f"  v_{name} = new_{name};" for name in values),
        "};",
        "for (N k = row * ins; k < (row + 1) * ins; ++k) {",
        "  const V t = p_ordered[k];",
        f"  if (!(t < K({constant(rule.window)}))) break;",
        "  arrives(p_by_input[p_index[k] * outs + j], t - now);",
        "  now = t;",
        "}",
        f"arrives(K(0), K({constant(rule.window)}) - now);",
        "p_time[i] = v_time;",
        "p_s_slope[i] = v_s_slope;",
    ]
    return threads(Kernel("event_forward", "", ("ordered", "by_input"), ("time", "s_slope"), SIZES, integers=("index",)), body)


def _pull(rule: STDBP) -> Kernel:
    graph = Graph()
    lines = Lines(_name)
    pulled = lines(graph.lift(rule.pull(Leaves(lambda name: graph.leaf("given", name)))))
    loads = [f"const V {name} = p_{name}[i]; (void){name};" for name in ("time", "s_slope", "g")]
    body = ["if (i >= rows * outs) return;", *loads, *lines.text, f"p_pull[i] = {pulled};"]
    return threads(Kernel("event_pull", "", ("time", "s_slope", "g"), ("pull",), SIZES), body)


def _weights(rule: STDBP) -> Kernel:
    text, value = _causal(rule, 1)
    body = [
        "if (i >= count) return;",
        "const N j = i % outs, k = i / outs % ins, part = i / outs / ins;",
        "const N last = (part + 1) * each < rows ? (part + 1) * each : rows;",
        "const V w = p_weight[j * ins + k]; (void)w;",
        "V sum = K(0);",
        "for (N row = part * each; row < last; ++row) {",
        "  const V t = p_times[row * ins + k];",
        f"  if (!(t < K({constant(rule.window)}))) continue;",
        "  const V time = p_time[row * outs + j], pull = p_pull[row * outs + j];",
        *(f"  {line}" for line in text),
        f"  sum = sum + {value};",
        "}",
        "p_d_weight[i] = sum;",
    ]
    return threads(Kernel("event_weights", "", ("times", "weight", "time", "pull"), ("d_weight",), (*SIZES, "each", "count")), body)


def _times(rule: STDBP) -> Kernel:
    text, value = _causal(rule, 0)
    body = [
        "if (i >= rows * ins) return;",
        "const N row = i / ins, k = i - row * ins;",
        "const V t = p_times[i];",
        f"if (!(t < K({constant(rule.window)}))) {{ p_d_times[i] = K(0); return; }}",
        LANES,
        "V d[LANES];",
        "#pragma unroll",
        "for (N l = 0; l < LANES; ++l) d[l] = K(0);",
        "for (N j0 = 0; j0 < outs; j0 += LANES) {",
        "#pragma unroll",
        "  for (N l = 0; l < LANES; ++l) {",
        "    const N j = j0 + l;",
        "    if (j < outs) {",
        "      const V time = p_time[row * outs + j], pull = p_pull[row * outs + j], w = p_weight[j * ins + k];",
        *(f"      {line}" for line in text),
        f"      d[l] = d[l] + {value};",
        "    }",
        "  }",
        "}",
        "#pragma unroll",
        "for (N l = 0; l < LANES / 2; ++l) d[l] = d[l] + d[l + LANES / 2];",
        "#pragma unroll",
        "for (N l = 0; l < LANES / 4; ++l) d[l] = d[l] + d[l + LANES / 4];",
        "V sum = d[0];",
        "#pragma unroll",
        "for (N l = 1; l < LANES / 4; ++l) sum = sum + d[l];",
        "p_d_times[i] = sum;",
    ]
    return threads(Kernel("event_times", "", ("times", "weight", "time", "pull"), ("d_times",), SIZES), body)


def _causal(rule: STDBP, which: int) -> tuple[list[str], str]:
    """Lines, and the value, of dL/dt (0) or dL/dw (1) that a neuron sends to an input."""
    graph, lines = Graph(), Lines(_name)
    value = lines(graph.lift(rule.causal(Leaves(lambda name: graph.leaf("given", name)))[which]))
    return lines.text, value


def _name(leaf: Node) -> str:
    return str(leaf.value[1])
