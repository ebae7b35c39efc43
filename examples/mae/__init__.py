"""Masked autoencoders (He et al. 2021, arXiv 2111.06377) with CropMix. See README.md beside this file."""
