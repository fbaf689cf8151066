"""Ways round slow code of torch, transformers, TRL and the C library, mostly on a CPU; `SRLM_PLAIN=1` does without.

Only these modules lean on what another version of a library need not have. Each has a plain way, which the libraries
document and which gives the same results but for rounding: it is taken by wish, on devices that need no detour, and,
with a warning, where the installed version is not as expected.
"""
