"""What cog writes into README.md and docs/: the table of the rules, their parameters, the help of the command.

`make docs` brings them up to date, `make lint` refuses what is stale.
"""

import html
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import cog

import snn_rules
from snn_rules.cli import _parameters, _range
from snn_rules.config import Config
from snn_rules.events import RECORDINGS, SPOKEN, SPOKEN_STEPS

RULES = {"surrogate": {}, "tssl": {}, "strsbp": {}, "stdbp": {}, 'stdbp`, `mode="event"': {"mode": "event"}}


def rules(pages):
    """The bundled rules; `pages` is where their pages lie, seen from the page that is written."""
    say("| rule | paper | sends | gradient | learns in step mode | T it trains with |", "|---|---|---|---|---|---:|")
    for title, options in RULES.items():
        name = title.partition("`")[0]
        rule = snn_rules.get_rule(name, **options)
        can = rule.capabilities
        paper = re.sub(r"^.*?[a-z]\. ", "", rule.cite)
        gradient = "the exact derivative" if can.exact else "the rule's own"
        say(
            f"| [`{title}`]({pages}/{name}.md) | {paper} | {'spike times' if can.signal == 'times' else 'spikes'} | {gradient} "
            f"| {'m, s' if can.single_step else 'm'} | {rule.training.T} |"
        )


def parameters(name):
    """The parameters of a rule, as `snn-rules info` shows them."""
    say("| parameter | default | unit | choices or range | meaning |", "|---|---|---|---|---|")
    for field in _parameters(snn_rules.get_rule(name)):
        meta = field.metadata
        choices = ", ".join(f"`{choice}`" for choice in meta["choices"]) or _range(meta)
        say(f"| `{field.name}` | `{field.default}` | {meta['unit']} | {choices} | {meta['help']} |")


def settings():
    """The settings of a training, with the comments that stand beside them."""
    say("| setting | type | default | meaning |", "|---|---|---|---|")
    for name, kind, default, meaning in re.findall(r"^    (\w+): ([^=]+?) = (\S+)(?:  # (.+))?$", inspect.getsource(Config), re.M):
        if name not in ("network", "seed"):
            say(f"| `{name}` | {kind.replace(' | ', ' or ')} | `{default}` | {meaning} |")


def recordings():
    """The data sets of spike trains."""
    say("| `--dataset` | a step | steps | a sample at one step | classes | beneath `--data-root` |", "|---|---:|---:|---|---:|---|")
    for (name, what), shape in zip(RECORDINGS.items(), ("2 x 34 x 34", "700", "2 x 32 x 32"), strict=True):
        files = " and ".join(f"`{what.tonic}/{part}`" for part in what.parts)
        say(f"| `{name}` | {what.window / 1000:g} ms | {what.steps} | {shape} | {what.classes} | {files} |")
    say(f"| `spoken-digits` | 1.6 ms | {SPOKEN_STEPS} | 78 | 10 | `{SPOKEN}` |")


def commands():
    """Every command with its help, as typer writes it."""
    words = [sys.executable, "-m", "typer", "snn_rules.cli", "utils", "docs", "--name", "snn-rules"]
    text = html.unescape(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    text = text[text.index("## ") :].replace("**Usage**:\n\n", "").replace("* `--help`: Show this message and exit.\n", "")
    say(re.sub(r"\*\*Options\*\*:\n\n(?=\n|$|#)", "", text).rstrip().replace("\n\n\n", "\n\n"))


def lens():
    """The tables of benchmarks/lens.py, from its results."""
    sys.path.insert(0, "benchmarks")
    from lens import RESULTS, tables

    say(tables(json.loads(RESULTS.read_text())["runs"]))


def bench():
    """The tables of `snn-rules bench`, from their results."""
    made, kernels = _results("bench"), _results("bench-kernels")
    say(f"{_measured(made)}.", "")
    say("One layer, forward and backward, autograd included (median ms, and times faster than `LIFNode`):", "")
    who = _layers(made)
    last = made["neurons"][-1]
    line(f"peak MB of the process at {' x '.join(map(str, last['shape']))}", *(f"{last[name]['peak_mb']:.0f}" for name in who))
    say("", f"    OMP_NUM_THREADS={made['threads']} {made['command']}")
    say("", "Kernels alone over arrays of 67 MB (GB/s moved, and the part of a triad with ordinary stores):", "")
    head("rule", "kernel", "GB/s", "of the triad")
    for row in kernels["stream"]:
        line(row["rule"], row["kernel"], f"{row['GB/s']:.1f}", f"{row['of_triad']:.0%}")
    say("", "Kernels alone over the length of the train (ms; linear is a ratio of 32):", "")
    lengths = list(kernels["lengths"][0]["ms"])
    head("neurons", "rule", *(f"T = {T}" for T in lengths), "last / first")
    for row in kernels["lengths"]:
        line(f"{row['neurons']:,}", row["rule"], *(f"{row['ms'][T]:.2f}" for T in lengths), f"{row['ratio']:.1f}")
    _steps(kernels)
    say("", "Until the kernels of a rule can run (ms): traced, emitted and compiled, or from the cache:", "")
    head("rule", "kernels", "cold", "warm")
    for row in kernels["starts"]:
        line(row["rule"], str(row["kernels"]), f"{row['cold']:.0f}", f"{row['warm']:.1f}")
    say("", f"    OMP_NUM_THREADS={kernels['threads']} {kernels['command']}")


def narrow():
    """The layers of `snn-rules bench` on vectors of 32 bytes."""
    made = _results("bench-avx2")
    _layers(made)
    say("", f"    OMP_NUM_THREADS={made['threads']} SNN_RULES_CXXFLAGS=-mno-avx512f {made['command']}")


def elsewhere():
    """The layers and the training steps of `snn-rules bench` on another machine."""
    made = _results("bench-zen4")
    say(f"The same layers and training steps on two cores of another machine ({made['machine']}, {made['date']}), by the same commands:", "")
    _layers(made)
    _steps(_results("bench-kernels-zen4"))


def event():
    """What benchmarks/event.py measured."""
    made = _results("event")
    (small, large, _), memory = made["time"], made["memory"]
    say(
        f"STDBP's event layer, 784-400, batch 128, a fifth of the inputs active: {small['ms']:.2f} ms forward and backward,"
        f"\n{small['ratio']:.0f} times faster than the same mathematics by torch's `sort` and `cumsum` ({small['peer_ms']:,.0f} ms); "
        f"at 784-800 and batch 512, {large['ms']:.1f} ms and {memory['MB']:.0f} MB of memory\nbeyond its tensors. {_measured(made)}.",
        "",
        f"    {made['command']}",
    )


def recurrent():
    """The tables of benchmarks/recurrent.py, in one."""
    made = _results("recurrent")
    head("", "T", "kernels", "eager torch", "products alone")
    for what, title in (("layer", "`RecurrentNode(400)`, forward + backward: "), ("step", "training step of 784-400-R400-10: ")):
        for name, row in made[what].items():
            rule, T = name.split(", T=")
            line(title + rule, T, *(f"{row[by]['ms']:.0f} ms" if by in row else "" for by in ("kernels", "eager", "products")))
            title = ""
    say("", f"{_measured(made)}.")


def zeros():
    """The tables of benchmarks/zeros.py: training steps, then layers."""
    made = _results("zeros")
    head("training step, batch 50", "rule", "T", "torch's products, ms", "without zeros, ms", "times faster")
    for row in made["steps"]:
        a, b = row["linear"], row["without zeros"]
        line(row["network"], f"`{row['rule']}`", str(row["T"]), f"{a:.0f}", f"{b:.0f}", f"{a / b:.1f}")
    say("")
    head(f"layer, {made['rows']:,} rows", "not zero", "output, ms", "without zeros", "gradient of weights, ms", "without zeros")
    for row in made["layers"]:
        times = [f"{row[name]:.1f}" for name in ("linear", "without zeros", "gradient", "gradient without zeros")]
        line(f"{row['inputs']}-{row['outputs']}", f"{100 * row['density']:g} %", *times)
    say("")
    head("convolution", "images", "not zero", "output, ms", "without zeros", "gradient of weights, ms", "without zeros")
    for row in made["convolutions"]:
        times = [f"{row[name]:.1f}" for name in ("conv2d", "without zeros", "gradient", "gradient without zeros")]
        what = f"{row['channels']} x {row['size']} x {row['size']}, {row['outputs']}C{row['kernel']}" + (
            f"p{row['padding']}" if row["padding"] else ""
        )
        line(what, f"{row['images']:,}", f"{100 * row['density']:g} %", *times)
    say("", f"{_measured(made)}; one input in twenty of the steps' is not zero.")


def _results(name):
    return json.loads(Path(f"benchmarks/results/{name}.json").read_text())


def _layers(made):
    who = list(made["neurons"][0])[2:]
    head("T x N x features", *who)
    for row in made["neurons"]:
        cells = [f"{row[name]['ms']:.2f}" + ("" if name in ("copy", "LIFNode") else f" ({row[name]['ratio']:.1f}x)") for name in who]
        line(" x ".join(map(str, row["shape"])), *cells)
    return who


def _steps(made):
    say("", "A training step of 784-400-400-10, batch 100 (ms, in products alone, times faster than `LIFNode`'s):", "")
    head("T", *(name for name in made["steps"][0] if name != "T"))
    for row in made["steps"]:
        cells = [f"{cell['ms']:.1f} ({cell['of_products']:.2f}, {cell['ratio']:.1f}x)" for name, cell in row.items() if name != "T"]
        line(str(row["T"]), *cells)


def _measured(made):
    return f"Measured on {made['date']}, {made['machine']}"


def overhead():
    """The table of benchmarks/overhead.py."""
    head("T x N x features", "rule", "`LIFNode`", "node", "its kernels", "empty `autograd.Function`", "overhead", "without torch's", "node, cold")
    made = _results("overhead")
    for found in made["results"]:
        shape, rule, *times = found.values()
        line(" x ".join(map(str, shape)), f"`{rule}`", *(f"{value:.0f}" for value in times))
    say("", f"{_measured(made)}.")


def head(*columns):
    line(*columns)
    say("|---|" + "---:|" * (len(columns) - 1))


def line(*cells):
    say(f"| {' | '.join(cells)} |")


def say(*lines):
    for line in lines:
        cog.outl(line)
