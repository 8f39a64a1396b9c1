"""What proves kernels right where there is no GPU; for the authors of rules, too (see `proof`).

`nvrtc` compiles them for every architecture, `ptx` interprets what comes out, `fake_cupy` lets the real launch code run so.
"""
