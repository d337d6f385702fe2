"""Triton kernels, one file per kind; imported by the modules of ``cbm.kernels`` when they are launched."""
