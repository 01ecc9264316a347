"""lnorm beside a plain copy, the NumPy expression and its peers: see README.md in this folder."""
