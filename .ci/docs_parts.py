"""What cog writes into README.md and docs/: the table of the rules, their parameters, the help of the command.

`make docs` brings them up to date, `make lint` refuses what is stale.
"""

import dataclasses
import html
import json
import re
import subprocess
import sys

import cog

import snn_rules
from snn_rules.cli import _range

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
    for field in dataclasses.fields(snn_rules.get_rule(name)):
        meta = field.metadata
        choices = ", ".join(f"`{choice}`" for choice in meta["choices"]) or _range(meta)
        say(f"| `{field.name}` | `{field.default}` | {meta['unit']} | {choices} | {meta['help']} |")


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


def say(*lines):
    for line in lines:
        cog.outl(line)
