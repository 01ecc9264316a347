"""Every argument outside its rule is refused with a message that names it, what it got and what is accepted,
and nothing has been touched then."""

import numpy as np
import pytest
from numpy.exceptions import AxisError

import lnorm

X = np.linspace(0, 1, 24).reshape(2, 3, 4)
STATS = np.zeros((2, 3, 1))


def read_only(a):
    a.flags.writeable = False
    return a


ACCEPTED = ("float32", "float64", "integer", "bool")

# What both functions refuse: arguments, error, words of the message.
COMMON = [
    *(
        (dict(x=X.astype(dtype)), TypeError, ("x", got, *ACCEPTED))
        for dtype, got in [
            (np.float16, "float16"),
            (np.complex64, "complex64"),
            (np.complex128, "complex128"),
            (np.longdouble, np.dtype(np.longdouble).name),
            ("U8", "U8"),
            (object, "object"),
            ("M8[s]", "datetime64"),
        ]
    ),
    (dict(x="some text"), TypeError, ("x", "U9", *ACCEPTED)),
    (dict(x=None), TypeError, ("x", "object", *ACCEPTED)),
    (dict(x=np.ma.masked_array(X)), TypeError, ("x", "mask")),
    (dict(axis=3), AxisError, ("axis", "3")),
    (dict(axis=-4), AxisError, ("axis", "-4", "3")),
    (dict(axis=(0, 5)), AxisError, ("axis", "5", "3")),
    (dict(x=np.array(1.0)), AxisError, ("axis", "-1", "0")),
    (dict(axis=(1, 1)), ValueError, ("axis", "(1, 1)")),
    (dict(axis=(2, -1)), ValueError, ("axis", "(2, -1)")),
    (dict(axis=()), ValueError, ("axis", "()")),
    (dict(axis=1.0), TypeError, ("axis", "1.0", "int")),
    (dict(axis=(0, 1.0)), TypeError, ("axis", "1.0", "int")),
    (dict(axis="1"), TypeError, ("axis", "'1'", "int")),
    (dict(axis=None), TypeError, ("axis", "None", "int")),
    (dict(scale=np.ones(3)), ValueError, ("scale", "(3,)", "(2, 3, 4)")),
    (dict(scale=np.ones((5, 2, 3, 4))), ValueError, ("scale", "(5, 2, 3, 4)", "(2, 3, 4)")),
    (dict(scale=np.ones((1, 2, 3, 4))), ValueError, ("scale", "(1, 2, 3, 4)", "(2, 3, 4)")),
    (dict(x=X[:, :1], scale=np.ones((3, 1))), ValueError, ("scale", "(3, 1)", "(2, 1, 4)")),
    (dict(x=X[..., :0], scale=np.ones(4)), ValueError, ("scale", "(4,)", "(2, 3, 0)")),
    (dict(scale=np.ones(4, complex)), TypeError, ("scale", "complex128", *ACCEPTED)),
    (dict(scale="gamma"), TypeError, ("scale", "U5", *ACCEPTED)),
    (dict(scale=np.array([None] * 4)), TypeError, ("scale", "object", *ACCEPTED)),
    (dict(scale=np.ma.ones(4)), TypeError, ("scale", "mask")),
    (dict(epsilon=-1e-9), ValueError, ("epsilon", "-1e-09", "finite")),
    (dict(epsilon=np.nan), ValueError, ("epsilon", "nan", "finite")),
    (dict(epsilon=np.inf), ValueError, ("epsilon", "inf", "finite")),
    (dict(epsilon=np.float32(-1)), ValueError, ("epsilon", "-1", "finite")),
    (dict(epsilon="1e-5"), TypeError, ("epsilon", "1e-5", "real")),
    (dict(epsilon=None), TypeError, ("epsilon", "None", "real")),
    (dict(epsilon=1e-5j), TypeError, ("epsilon", "1e-05j", "real")),
    (dict(epsilon=[1e-5]), TypeError, ("epsilon", "[1e-05]", "real")),
    (dict(epsilon=np.array([1e-5, 1])), TypeError, ("epsilon", "real")),
    (dict(out=np.ones((3, 4))), ValueError, ("out", "(3, 4)", "(2, 3, 4)")),
    (dict(out=np.ones((1, 2, 3, 4))), ValueError, ("out", "(1, 2, 3, 4)", "(2, 3, 4)")),
    (dict(out=np.ones((4, 3, 2))), ValueError, ("out", "(4, 3, 2)", "(2, 3, 4)")),
    (dict(out=read_only(np.ones(X.shape))), ValueError, ("out", "read-only")),
    (dict(x=X.copy(), out=np.broadcast_to(1.0, X.shape)), ValueError, ("out", "read-only")),
    (dict(out=np.ones(X.shape, np.float32)), TypeError, ("out", "float32", "float64")),
    (dict(x=X.astype(np.float32), out=np.ones(X.shape)), TypeError, ("out", "float64", "float32")),
    (dict(x=np.ones(X.shape, int), out=np.ones(X.shape, int)), TypeError, ("out", "int64", "float64")),
    (dict(out=X.tolist()), TypeError, ("out", "list", "array")),
    (dict(out="here"), TypeError, ("out", "str", "array")),
    (dict(out=np.ma.ones(X.shape)), TypeError, ("out", "MaskedArray")),
    (dict(nothing=1), TypeError, ("nothing",)),
]

FORWARD = [
    (dict(offset=np.ones(3)), ValueError, ("offset", "(3,)", "(2, 3, 4)")),
    (dict(offset=np.ones((5, 1, 1, 1))), ValueError, ("offset", "(5, 1, 1, 1)", "(2, 3, 4)")),
    (dict(offset=np.ones(4, complex)), TypeError, ("offset", "complex128", *ACCEPTED)),
    (dict(offset=np.ma.ones(4)), TypeError, ("offset", "mask")),
]

BACKWARD = [
    (dict(dy=X[0]), ValueError, ("dy", "(3, 4)", "(2, 3, 4)")),
    (dict(dy=np.ones((1, 2, 3, 4))), ValueError, ("dy", "(1, 2, 3, 4)", "(2, 3, 4)")),
    (dict(dy=1.0), ValueError, ("dy", "()", "(2, 3, 4)")),
    (dict(dy=X.astype(complex)), TypeError, ("dy", "complex128", *ACCEPTED)),
    (dict(dy=np.ma.masked_array(X)), TypeError, ("dy", "mask")),
    (dict(mean=STATS), ValueError, ("mean", "rstd")),
    (dict(rstd=STATS), ValueError, ("mean", "rstd")),
    (dict(mean=STATS[0], rstd=STATS), ValueError, ("mean", "(3, 1)", "(2, 3, 1)")),
    (dict(mean=STATS, rstd=STATS[..., 0]), ValueError, ("rstd", "(2, 3)", "(2, 3, 1)")),
    (dict(mean=X, rstd=STATS), ValueError, ("mean", "(2, 3, 4)", "(2, 3, 1)")),
    (dict(mean=STATS, rstd=STATS, axis=1), ValueError, ("mean", "(2, 3, 1)", "(2, 1, 4)")),
    (dict(mean=STATS.astype(complex), rstd=STATS), TypeError, ("mean", "complex128")),
    (dict(mean=STATS, rstd=STATS.astype(str)), TypeError, ("rstd", "U32")),
]


def named(rows):
    return [
        pytest.param(*row, id=", ".join(f"{k}={str(v)[:20]!r}" for k, v in row[0].items())) for row in rows
    ]


def check(call, defaults, arguments, error, words):
    arguments = {**defaults, **arguments}
    arrays = {name: a for name, a in arguments.items() if isinstance(a, np.ndarray)}
    before = {name: a.tobytes() for name, a in arrays.items()}
    with pytest.raises(error) as caught:
        call(**arguments)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"the message lacks {missing}: {caught.value}"
    assert {name: a.tobytes() for name, a in arrays.items()} == before


@pytest.mark.parametrize("arguments, error, words", named(COMMON + FORWARD))
def test_layer_norm_refuses(arguments, error, words):
    out = np.full(np.shape(arguments.get("x", X)), 7.0)
    check(lnorm.layer_norm, dict(x=X, scale=None, offset=None, out=out), arguments, error, words)


@pytest.mark.parametrize("arguments, error, words", named(COMMON + BACKWARD))
def test_layer_norm_backward_refuses(arguments, error, words):
    dy = np.full(np.shape(arguments.get("x", X)), 7.0)
    out = np.full_like(dy, 5.0)
    check(lnorm.layer_norm_backward, dict(dy=dy, x=X, scale=None, out=out), arguments, error, words)


@pytest.mark.parametrize(
    "n, error, words",
    [
        (0, ValueError, ("n ", "0", "from 1")),
        (-3, ValueError, ("n ", "-3", "from 1")),
        (2.0, TypeError, ("2.0", "int", "None")),
        ("2", TypeError, ("'2'", "int", "None")),
        ([1], TypeError, ("[1]", "int", "None")),
    ],
)
def test_set_num_threads_refuses(n, error, words):
    before = lnorm.get_num_threads()
    check(lnorm.set_num_threads, {}, dict(n=n), error, words)
    assert lnorm.get_num_threads() == before


@pytest.mark.parametrize(
    "mode, error", [("json", ValueError), (None, (ValueError, TypeError)), (1, (ValueError, TypeError))]
)
def test_show_config_refuses(mode, error):
    check(lnorm.show_config, {}, dict(mode=mode), error, (repr(mode), "stdout", "dicts"))


@pytest.mark.parametrize(
    "call", [lambda: lnorm.layer_norm(X, None, None, -1), lambda: lnorm.layer_norm_backward(X, X, None, -1)]
)
def test_axis_and_what_follows_are_keywords_only(call):
    with pytest.raises(TypeError, match="positional"):
        call()


@pytest.mark.parametrize("epsilon", [1, 0, np.float32(1), np.float64(0.5), np.int64(2)])
def test_any_real_number_is_an_epsilon(epsilon):
    expected = lnorm.layer_norm(X, epsilon=float(epsilon))
    np.testing.assert_array_equal(lnorm.layer_norm(X, epsilon=epsilon), expected, strict=True)


def test_show_config_prints_what_it_returns(capsys):
    assert lnorm.show_config() is None
    printed = capsys.readouterr().out
    config = lnorm.show_config(mode="dicts")
    assert capsys.readouterr().out == ""
    assert {"version", "compiler", "openmp", "threads", "instruction sets"} <= {key.lower() for key in config}
    assert config["version"] == lnorm.__version__
    for part in (lnorm.__version__, *config["instruction sets"]["compiled"], config["threads"]["decided by"]):
        assert str(part) in printed
