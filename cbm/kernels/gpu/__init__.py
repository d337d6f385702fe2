"""Triton kernels, one file per operation; imported by the modules of ``cbm.kernels`` when they are launched."""
