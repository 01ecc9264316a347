"""Promise 1 in the worst rows that trials/worst_rows.py has found."""

from pathlib import Path

import numpy as np
import pytest
from oracle import BOUND
from worst_rows import measured

WORST = np.load(Path(__file__).with_name("worst_rows.npz"))


@pytest.mark.parametrize("name", WORST)
def test_the_worst_rows_that_were_found_keep_the_bound(name):
    what = name.split()[0]
    genes, repeats = WORST[name][:-1], int(WORST[name][-1])
    for length in {1, 2, 3, 4, 5, 16, 64, repeats}:
        assert measured(what, genes, length) <= BOUND[what]
