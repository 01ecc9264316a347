"""One room for each peer; each holds `prepare`, as implementations.py has it for lnorm."""
