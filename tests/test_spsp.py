"""ST-RSBP's Fig. 3, with few trains."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from snn_rules_strsbp import reference, rule

ROOT = Path(__file__).parents[1]


def test_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("spsp", ROOT / "benchmarks" / "spsp.py")
    spec.loader.exec_module(figure := importlib.util.module_from_spec(spec))
    monkeypatch.setattr(figure.spsp, "TRAINS", 30)
    monkeypatch.setattr(figure, "T", 160)
    monkeypatch.setattr(figure, "PICTURE", tmp_path / "a.png")
    monkeypatch.setattr(figure, "RESULTS", tmp_path / "a.json")
    figure.main()
    figure.spsp._fit.cache_clear()  # of what few trains gave
    said = json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert said["B: departure from a line through 0, percent"] < 5 < said["C: departure from a line through 0, percent"]


def test_what_is_averaged_is_eq_6() -> None:
    generator, few = np.random.default_rng(0), rule.STRSBP(tau_m=64.0, tau_s=8.0, t_ref=2, delay=0)
    from snn_rules_strsbp import spsp

    post, pre = (spsp._trains(generator, count, 60, 2)[:, 0] for count in (4, 6))
    h = spsp._h(post[:, None], 64.0, 8.0, 2)[:, 0]
    want = reference.spsp(few, post.tolist(), [t for t, s in enumerate(pre) if s], 0)
    assert float(h @ pre) == pytest.approx(want, rel=1e-9) and want > 0
