"""The conformance kit for rules (`check_rule`, see `kit`), and what proves kernels right where there is no GPU (`proof`).

`nvrtc` compiles them for every architecture, `ptx` interprets what comes out, `fake_cupy` lets the real launch code run so.
"""

from .kit import CHECKS, CheckError, check_rule, parametrize_with_checks

__all__ = ["CHECKS", "CheckError", "check_rule", "parametrize_with_checks"]
