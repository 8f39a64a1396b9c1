"""Counts the lines of a rule's mathematics; cog writes the table into docs/write-a-rule.md, `python .ci/rule_lines.py` prints it.

Counted is all of the class but its parameters, its texts and what it does in a network, and with it the functions of its own
package that it calls; without docstrings, comments and empty lines.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
RULES = {
    "tssl": "plugins/tssl/snn_rules_tssl",
    "strsbp": "plugins/strsbp/snn_rules_strsbp",
    "stdbp": "plugins/stdbp/snn_rules_stdbp",
    "eventprop": "examples/third_party/eventprop/snn_rules_eventprop",
    "eprop": "examples/third_party/eprop/snn_rules_eprop",
}
NETWORK = {"adopt", "initialize", "encode", "loss", "predict", "train", "times", "fuse", "own_layers", "own_kernels", "stock"}
TEXTS = {"capabilities", "training", "window", "expected_failed_checks"}


def lines(package: Path) -> int:
    """The lines of the mathematics of the rule in `package/rule.py`."""
    text = (package / "rule.py").read_text(encoding="utf-8")
    body = ast.parse(text).body
    (rule,) = (node for node in body if isinstance(node, ast.ClassDef) and any(isinstance(part, ast.FunctionDef) for part in node.body))
    found = sum(_code(part, text) for part in rule.body if isinstance(part, ast.FunctionDef) and part.name not in NETWORK | TEXTS)
    for node in body:  # helpers of the package
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            helpers = (package / f"{node.module}.py").read_text(encoding="utf-8")
            found += sum(_code(part, helpers) for part in ast.parse(helpers).body if isinstance(part, ast.FunctionDef))
    return found


def _code(function: ast.FunctionDef, text: str) -> int:
    """Lines that hold code, decorators included, docstrings and comments not."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    said = function.body[0] if ast.get_docstring(function) else None
    hidden = range(said.lineno, (said.end_lineno or 0) + 1) if said else ()
    numbered = enumerate(text.splitlines()[first - 1 : function.end_lineno], first)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and number not in hidden for number, line in numbered)


def table() -> str:
    """As it stands in the documentation."""
    rows = [f"| `{name}` | {lines(ROOT / folder)} |" for name, folder in RULES.items()]
    return "\n".join(["| rule | lines of mathematics |", "|---|---:|", *rows])


def write() -> None:
    """For cog."""
    import cog

    cog.outl(table())


if __name__ == "__main__":
    print(table())
