"""The layer: every property, every format, initializers, training, state and display."""

import copy
import io
import itertools
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import oracle
import pytest

import lnorm
from lnorm import LayerNormalizationLayer as Layer

INITIALIZERS = ["ones", "zeros", "narrow-normal", np.ones]
NOT_INITIALIZERS = [("twos", ValueError), (None, TypeError), (1, TypeError)]
FACTORS = [0, 0.5, np.float32(2), 3]
NOT_FACTORS = [(-1, ValueError), (np.nan, ValueError), (np.inf, ValueError), (10**400, ValueError)]
NOT_FACTORS += [("1", TypeError), (None, TypeError), (True, TypeError), (1j, TypeError)]
VALUES = [None, [1, 2, 3], np.arange(3.0), np.ones((1, 1, 3)), np.ones((3, 1)), (True, False, True)]
VALUES += [np.ones(3, ">f8"), np.ones(6)[::-2]]
NOT_VALUES = [
    (np.ones((3, 2)), ValueError),
    (1.0, ValueError),
    ([], ValueError),
    (np.ones((2, 0)), ValueError),
]
NOT_VALUES += [([[1, 2], [3]], ValueError), (["a", "b"], TypeError), ([1j], TypeError), ([None], TypeError)]
NOT_VALUES += [(np.ma.masked_equal([1, 2], 1), TypeError)]

# property: (default, valid values, (invalid value, error)...)
PROPERTIES = {
    "name": ("", ["layernorm", ""], [(None, TypeError), (1, TypeError)]),
    "epsilon": (
        1e-5,
        [1e-5, 1, np.float32(0.5), np.float64(1e-3)],
        [(9e-6, ValueError), (0, ValueError), (-1e-5, ValueError), *NOT_FACTORS[1:]],
    ),
    "num_channels": (
        "auto",
        ["auto", 1, np.int64(3), 2**40],
        [
            (0, ValueError),
            (-3, ValueError),
            ("Auto", ValueError),
            (3.0, TypeError),
            (True, TypeError),
            (None, TypeError),
        ],
    ),
    "dtype": (
        np.dtype(np.float32),
        ["float32", "float64", np.float64, "d", float],
        [
            ("float16", ValueError),
            (int, ValueError),
            (">f4", ValueError),
            ("no dtype", TypeError),
            (None, TypeError),
        ],
    ),
    "data_format": (
        None,
        [None, "BC", "CBT", "SSCB", "C", "SSSSC", "TC"],
        [
            *[(wrong, ValueError) for wrong in ("", "B", "BT", "BCC", "BBC", "BTTC", "BXC", "bc", "B C")],
            (("B", "C"), TypeError),
            (1, TypeError),
        ],
    ),
    "operation_dimension": (
        "batch-excluded",
        ["batch-excluded", "channel-only", "spatial-channel", "auto"],
        [("Auto", ValueError), ("", ValueError), (None, TypeError), (-1, TypeError)],
    ),
    "scale_initializer": ("ones", INITIALIZERS, NOT_INITIALIZERS),
    "offset_initializer": ("zeros", INITIALIZERS, NOT_INITIALIZERS),
    "rng": (
        None,
        [None, 0, [1, 2], np.random.default_rng(0), np.random.PCG64(1), np.random.SeedSequence(2)],
        [("seed", TypeError), (1.5, TypeError), (-1, ValueError)],
    ),
    "scale": (None, VALUES, NOT_VALUES),
    "offset": (None, VALUES, NOT_VALUES),
    "scale_learn_rate_factor": (1.0, FACTORS, NOT_FACTORS),
    "offset_learn_rate_factor": (1.0, FACTORS, NOT_FACTORS),
    "scale_l2_factor": (1.0, FACTORS, NOT_FACTORS),
    "offset_l2_factor": (1.0, FACTORS, NOT_FACTORS),
}
READ_ONLY = {"num_inputs": 1, "input_names": ("in",), "num_outputs": 1, "output_names": ("out",)}
CHECKS = [(name, invalid, error) for name, (_, _, wrong) in PROPERTIES.items() for invalid, error in wrong]


def snapshot(layer):
    """Everything a property can show, arrays as dtype and bytes."""
    values = {name: getattr(layer, name) for name in PROPERTIES}
    values |= {f"{p.name}.gradient": p.gradient for p in layer.learnables}
    return {k: (v.dtype, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v for k, v in values.items()}


def trained_layer(**properties):
    """A layer with something in every place."""
    layer = Layer(name="trained", scale=[1.0, 2.0, -3.0], offset=[0.5, 0.0, 0.1], **properties)
    layer.forward(np.arange(6.0).reshape(2, 3) ** 2)
    layer.backward(np.eye(2, 3))
    return layer


def test_the_table_has_every_property():
    settable = {n for n in dir(Layer) if hasattr(getattr(Layer, n), "__set__") and not n.startswith("_")}
    assert settable - {"learnables"} == set(PROPERTIES)
    assert settable.isdisjoint(READ_ONLY)


@pytest.mark.parametrize("name", PROPERTIES)
def test_default(name):
    assert getattr(Layer(), name) == PROPERTIES[name][0]


@pytest.mark.parametrize("name", PROPERTIES)
def test_valid_values_are_taken_at_construction_and_on_assignment(name):
    for value in PROPERTIES[name][1]:
        assigned = Layer()
        setattr(assigned, name, value)
        for layer in (assigned, Layer(**{name: value})):
            kept = getattr(layer, name)
            if name in ("scale", "offset") and value is not None:
                assert kept.dtype == np.float32 and kept.shape == (3,) and layer.num_channels == 3
                np.testing.assert_array_equal(kept, np.ravel(value))
            else:
                assert kept is value or kept == value


@pytest.mark.parametrize("name, value, error", CHECKS, ids=[f"{n}={v!r:.30}" for n, v, _ in CHECKS])
def test_invalid_values_are_errors_at_construction_and_on_assignment_and_change_nothing(name, value, error):
    layer = trained_layer()
    before = snapshot(layer)
    with pytest.raises(error, match=f"^{name} must be .+, not .+") as on_assignment:
        setattr(layer, name, value)
    assert snapshot(layer) == before
    with pytest.raises(error) as at_construction:
        Layer(**{name: value})
    assert str(at_construction.value) == str(on_assignment.value)


@pytest.mark.parametrize("name", READ_ONLY)
def test_read_only_properties(name):
    layer = Layer()
    assert getattr(layer, name) == READ_ONLY[name]
    with pytest.raises(AttributeError, match=f"{name} is read-only"):
        setattr(layer, name, READ_ONLY[name])
    with pytest.raises(TypeError, match=name):
        Layer(**{name: READ_ONLY[name]})


def test_misspelt_names_are_errors():
    with pytest.raises(TypeError, match=r"'epsilom'.*name, epsilon, num_channels.*offset_l2_factor"):
        Layer(epsilom=1e-3)
    with pytest.raises(AttributeError):
        Layer().epsilom = 1e-3


class TestChannels:
    def test_are_fixed_by_data(self):
        layer = Layer()
        layer.predict(np.ones((2, 3)))
        assert layer.num_channels == 3
        for refused in (np.ones((2, 4)), np.ones((2, 1)), np.ones((2, 7, 4)), np.ones((2, 0))):
            before = snapshot(layer)
            with pytest.raises(ValueError, match="channels"):
                layer.predict(refused)
            assert snapshot(layer) == before
        assert layer.predict(np.ones((5, 2, 3))).shape == (5, 2, 3)

    def test_of_one_channel_are_not_broadcast(self):
        layer = Layer(scale=np.ones((1, 1, 1)))
        with pytest.raises(ValueError, match="num_channels = 1"):
            layer.predict(np.ones((2, 3)))
        assert layer.predict(np.ones((2, 1))).tolist() == [[0], [0]]

    @pytest.mark.parametrize("how", [4, np.int32(4), np.ones((2, 4)), [[1, 2, 3, 4]], np.ones((0, 4))])
    def test_are_fixed_by_initialize(self, how):
        layer = Layer()
        assert layer.initialize(how) is layer
        assert (
            layer.num_channels == 4 and layer.scale.tolist() == [1] * 4 and layer.offset.tolist() == [0] * 4
        )
        layer.initialize(4)
        with pytest.raises(ValueError, match="num_channels = 4"):
            layer.initialize(5)

    @pytest.mark.parametrize("how", [0, -1, True, np.ones((2, 0))])
    def test_are_positive(self, how):
        layer = Layer()
        with pytest.raises((TypeError, ValueError), match="num_channels must be 'auto' or a positive int"):
            layer.initialize(how)
        assert layer.num_channels == "auto"

    def test_are_fixed_by_setting_a_learnable(self):
        layer = Layer()
        layer.offset = [1, 2]
        assert layer.num_channels == 2 and layer.scale is None
        for name, value in {"scale": [1, 2, 3], "offset": [1], "num_channels": 3}.items():
            before = snapshot(layer)
            with pytest.raises(ValueError, match="one value per channel"):
                setattr(layer, name, value)
            assert snapshot(layer) == before
        layer.offset = None
        assert layer.offset is None and layer.num_channels == 2
        with pytest.raises(ValueError, match="num_channels"):
            layer.scale = [1, 2, 3]
        layer.num_channels = "auto"
        layer.scale = [1, 2, 3]
        assert layer.num_channels == 3
        layer.num_channels = "auto"
        assert layer.num_channels == 3

    def test_contradictions_are_errors_at_construction(self):
        for contradiction in ({"num_channels": 2, "scale": [1]}, {"scale": [1, 2], "offset": [1, 2, 3]}):
            with pytest.raises(ValueError, match="one value per channel"):
                Layer(**contradiction)


class TestInitializers:
    def test_run_only_where_a_learnable_is_empty(self):
        layer = Layer(scale=[5, 6], scale_initializer="zeros", offset_initializer=lambda sz: np.full(sz, 7))
        layer.initialize(2)
        assert layer.scale.tolist() == [5, 6] and layer.offset.tolist() == [7, 7]
        layer.offset_initializer = "ones"
        layer.predict(np.ones((1, 2)))
        assert layer.offset.tolist() == [7, 7]
        layer.scale = None
        layer.predict(np.ones((1, 2)))
        assert layer.scale.tolist() == [0, 0] and layer.offset.tolist() == [7, 7]

    def test_narrow_normal_has_a_standard_deviation_of_a_hundredth_and_follows_rng(self):
        def make(rng):
            return Layer(scale_initializer="narrow-normal", offset_initializer="narrow-normal", rng=rng)

        layer = make(0).initialize(100_000)
        for values in (layer.scale, layer.offset):
            assert (
                abs(values.mean()) < 2e-4 and abs(values.std() - 0.01) < 2e-4 and values.dtype == np.float32
            )
        assert abs(np.corrcoef(layer.scale, layer.offset)[0, 1]) < 0.02
        again = make(np.random.default_rng(0)).initialize(100_000)
        assert (
            again.scale.tobytes() == layer.scale.tobytes()
            and again.offset.tobytes() == layer.offset.tobytes()
        )
        generator = np.random.default_rng(1)
        for name in ("scale", "offset"):
            expected = generator.normal(0, 0.01, 5).astype(np.float32)
            assert getattr(make(1).initialize(5), name).tolist() == expected.tolist()
        assert make(1).initialize(10).scale.tolist() != layer.scale[:10].tolist()

    def test_leave_numpys_global_random_state_alone(self):
        before = pickle.dumps(np.random.get_state())
        Layer(scale_initializer="narrow-normal").initialize(5)
        assert pickle.dumps(np.random.get_state()) == before

    def test_get_the_shape(self):
        seen = []
        Layer(scale_initializer=lambda sz: seen.append(sz) or np.zeros(sz)).initialize(3)
        assert seen == [(3,)]

    @pytest.mark.parametrize(
        "wrong, error",
        [
            (lambda sz: np.ones((*sz, 1)), ValueError),
            (lambda sz: 1.0, ValueError),
            (lambda sz: None, ValueError),
            (lambda sz: ["a"] * sz[0], TypeError),
            (lambda sz: 1 / 0, ZeroDivisionError),
        ],
    )
    def test_all_or_nothing(self, wrong, error):
        layer = Layer(offset_initializer=wrong)
        before = snapshot(layer)
        with pytest.raises(error, match=r"offset|division"):
            layer.predict(np.ones((2, 3)))
        assert snapshot(layer) == before
        assert layer.scale is None and layer.num_channels == "auto"


def test_dtype_casts_the_learnables():
    layer = Layer(scale=[1, 2.5], offset=np.array([0.1, 0.2]))
    assert layer.scale.dtype == layer.offset.dtype == np.float32
    layer.dtype = "float64"
    assert layer.scale.dtype == layer.offset.dtype == np.float64
    assert layer.offset.tolist() == [float(np.float32(0.1)), float(np.float32(0.2))]
    layer.offset = [0.1, 0.2]
    assert layer.offset.tolist() == [0.1, 0.2]
    assert layer.predict(np.ones((1, 2), np.float32)).dtype == np.float32


def test_learnables_are_copied_when_they_are_set():
    mine = np.ones(3, np.float32)
    layer = Layer(scale=mine, offset=mine)
    layer.scale[0] = 5
    assert mine.tolist() == [1, 1, 1] and layer.offset.tolist() == [1, 1, 1]


# The table of the contract: labels without B, and those that share a mean, by operation_dimension.
TABLE = {
    "C": ("C", "C", "C", "C"),
    "TC": ("TC", "C", "C", "C"),
    "SC": ("SC", "C", "SC", "C"),
    "STC": ("STC", "C", "SC", "C"),
    "SSC": ("SC", "C", "SC", "SC"),
    "SSSC": ("SC", "C", "SC", "SC"),
    "SSTC": ("STC", "C", "SC", "SC"),
}
FORMATS = sorted(
    {"".join(p) for labels in TABLE for b in ("B", "") for p in itertools.permutations(b + labels)}
)


@pytest.mark.parametrize(
    "column", range(4), ids=["batch-excluded", "channel-only", "spatial-channel", "auto"]
)
@pytest.mark.parametrize("labels", FORMATS)
def test_every_order_of_labels_is_the_definition(labels, column):
    rng = oracle.rng_for(labels)
    sizes = {"B": iter([3]), "C": iter([9]), "T": iter([5]), "S": iter([2, 4, 3])}
    shape = tuple(next(sizes[label]) for label in labels)
    row = next(row for key, row in TABLE.items() if sorted(key) == sorted(labels.replace("B", "")))
    axis = tuple(i for i, label in enumerate(labels) if label in row[column])
    operation = ("batch-excluded", "channel-only", "spatial-channel", "auto")[column]
    scale, offset = rng.standard_normal((2, 9)).astype(np.float32)
    per_channel = tuple(9 if label == "C" else 1 for label in labels)
    layer = Layer(data_format=labels, operation_dimension=operation, scale=scale, offset=offset, epsilon=1e-3)
    for order in "CF":
        x = np.asarray(5 + rng.standard_normal(shape), np.float32, order)
        dy = np.asarray(rng.standard_normal(shape), np.float32, order)
        expected = (x, scale.reshape(per_channel), offset.reshape(per_channel), axis, 1e-3)
        y = layer.predict(x)
        assert oracle.worst_forward_error(y, *expected) <= oracle.BOUND["y"]
        assert oracle.bits(layer.forward(x), layer(x)) == oracle.bits(y, y)
        dx = layer.backward(dy)
        doffset, dscale = (p.gradient.reshape(per_channel) for p in layer.learnables)
        errors = oracle.worst_backward_errors((dx, dscale, doffset), dy, x, expected[1], axis, 1e-3)
        assert not oracle.beyond_bounds(errors)


@pytest.mark.parametrize("labels", ["BC", "BTC", "BSSC", "BSSSC"])
def test_default_formats(labels):
    x = oracle.rng_for(labels).standard_normal([*(3, 4, 2, 5, 6)[: len(labels) - 1], 7])
    for operation in ("batch-excluded", "channel-only", "spatial-channel", "auto"):
        default, explicit = (Layer(data_format=f, operation_dimension=operation) for f in (None, labels))
        assert oracle.bits(default.predict(x)) == oracle.bits(explicit.predict(x))


@pytest.mark.parametrize("shape", [(), (3,), (1,) * 6])
def test_without_a_default_format_data_format_must_be_set(shape):
    with pytest.raises(ValueError, match=r"data_format.*set it"):
        Layer().predict(np.ones(shape))


def test_data_of_another_number_of_dimensions_is_an_error():
    layer = Layer(data_format="CBT")
    with pytest.raises(ValueError, match=r"data_format.*'CBT'"):
        layer.predict(np.ones((3, 4)))
    assert layer.num_channels == "auto"


class TestPredict:
    def test_writes_to_out_also_in_place(self):
        layer, x = trained_layer(), np.arange(6, dtype=np.float32).reshape(2, 3)
        y, out = layer.predict(x), np.empty_like(x)
        assert layer.predict(x, out=out) is out and layer.predict(x, out) is out
        assert oracle.bits(out) == oracle.bits(y)
        assert layer.predict(x, out=x) is x and oracle.bits(x) == oracle.bits(y)

    def test_takes_what_numpy_can_view(self):
        layer = Layer()
        assert layer.predict([[1, 3], [2, 2]]).dtype == np.float64
        with pytest.raises(TypeError):
            layer.predict(np.ma.masked_equal([[1.0, 2.0]], 1))

    def test_keeps_nothing(self):
        layer, x = Layer().initialize(3), np.ones((2, 3))
        references = sys.getrefcount(x)
        layer.predict(x)
        assert sys.getrefcount(x) == references
        with pytest.raises(RuntimeError, match="call forward first"):
            layer.backward(x)

    @pytest.mark.parametrize(
        "change",
        [
            {"epsilon": 0.5},
            {"scale": [3, 4, 5]},
            {"offset": [3, 4, 5]},
            {"operation_dimension": "channel-only"},
            {"data_format": "CTB"},
            {"dtype": "float64", "scale": [0.1, 0.2, 0.3]},
        ],
    )
    def test_follows_every_change_of_a_property(self, change):
        x = np.random.default_rng(0).standard_normal((3, 3, 3))
        layer = Layer()
        before = layer.predict(x)
        for name, value in change.items():
            setattr(layer, name, value)
        assert oracle.bits(layer.predict(x)) == oracle.bits(Layer(**change).predict(x)) != oracle.bits(before)

    def test_follows_changes_in_place(self):
        x, layer = np.random.default_rng(0).standard_normal((2, 3)), Layer()
        y = layer.predict(x)
        layer.scale[...] *= 2
        layer.offset[...] += 1
        np.testing.assert_allclose(layer.predict(x), 2 * y + 1, rtol=1e-14)

    def test_first_calls_from_many_threads(self):
        x = np.random.default_rng(0).standard_normal((4, 3))
        expected = oracle.bits(Layer().predict(x))
        for _ in range(20):
            layer, results = Layer(), []
            threads = [
                threading.Thread(target=lambda y=layer, to=results: to.append(y.predict(x))) for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [oracle.bits(y) for y in results] == [expected] * 8


class TestTraining:
    @pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (2, 3, 4, 5), (2, 3, 2, 2, 5)])
    def test_gradients_are_central_differences(self, shape):
        rng = oracle.rng_for(shape)
        x, weights = rng.standard_normal((2, *shape))
        layer = Layer(dtype="float64", scale=rng.standard_normal(5), offset=rng.standard_normal(5))

        def differences(values, h=1e-5):
            slopes = np.empty_like(values)
            for i, value in np.ndenumerate(values):
                sides = []
                for values[i] in (value + h, value - h):
                    sides.append(np.sum(weights * layer.predict(x)))
                values[i] = value
                slopes[i] = (sides[0] - sides[1]) / (2 * h)
            return slopes

        layer.forward(x)
        dx = layer.backward(weights)
        offset, scale = layer.learnables
        for gradient, values in ((dx, x), (offset.gradient, layer.offset), (scale.gradient, layer.scale)):
            atol = 1e-8 * np.abs(gradient).max()  # A slope near 0 is a difference of rounded sums.
            np.testing.assert_allclose(differences(values), gradient, rtol=1e-6, atol=atol)

    def test_backward_replaces_gradients_unless_they_accumulate(self):
        layer, rng = Layer(dtype="float64"), np.random.default_rng(0)
        layer.forward(rng.standard_normal((4, 3)))
        dy = rng.standard_normal((4, 3))
        layer.backward(dy, accumulate=True)
        first = [p.gradient for p in layer.learnables]
        layer.backward(2 * dy)
        doubled = [p.gradient for p in layer.learnables]
        layer.backward(dy, accumulate=True)
        for once, twice, p in zip(first, doubled, layer.learnables, strict=True):
            np.testing.assert_allclose(twice, 2 * once, rtol=1e-14)
            np.testing.assert_allclose(p.gradient, 3 * once, rtol=1e-14)

    def test_backward_needs_forward(self):
        with pytest.raises(RuntimeError, match="call forward first"):
            Layer(scale=[1, 2]).backward(np.ones((1, 2)))

    def test_forward_keeps_its_input_and_no_copy(self):
        layer, x = Layer(), np.ones((2, 3))
        references = sys.getrefcount(x)
        layer.forward(x)
        assert sys.getrefcount(x) == references + 1

    def test_backward_is_of_the_layer_as_it_was_in_forward(self):
        rng = np.random.default_rng(0)
        x, dy = rng.standard_normal((2, 4, 3, 3))
        layer = Layer()
        layer.forward(x)
        expected = layer.backward(dy)
        layer.forward(x)
        layer.epsilon, layer.operation_dimension, layer.data_format = 0.5, "channel-only", "BCT"
        assert oracle.bits(layer.backward(dy)) == oracle.bits(expected)

    def test_gradients_have_the_dtype_of_the_learnables(self):
        for dtype in ("float32", "float64"):
            assert {p.gradient.dtype for p in trained_layer(dtype=dtype).learnables} == {np.dtype(dtype)}

    def test_an_emptied_learnable_has_no_gradient(self):
        layer = trained_layer()
        layer.scale = None
        offset, scale = layer.learnables
        assert scale.gradient is None and offset.gradient is not None


class TestLearnables:
    def test_are_offset_and_scale(self):
        layer = Layer()
        assert [p.name for p in layer.learnables] == ["offset", "scale"]
        assert all(isinstance(p, lnorm.Learnable) for p in layer.learnables)
        assert [p.value for p in layer.learnables] == [None, None]
        layer.initialize(2)
        assert layer.learnables[0].value is layer.offset and layer.learnables[1].value is layer.scale

    def test_are_in_step_with_the_layer(self):
        layer = Layer().initialize(2)
        offset, scale = layer.learnables
        layer.scale = [3, 4]
        assert scale.value.tolist() == [3, 4]
        scale.value = np.array([[5.0], [6.0]])
        assert layer.scale.tolist() == [5, 6] and layer.scale.dtype == np.float32
        assert layer.predict(np.array([[-1.0, 1.0]])).round(3).tolist() == [[-5, 6]]
        layer.set_learn_rate_factor("offset", 2)
        layer.scale_l2_factor = 3
        offset.l2_factor = 4
        assert (offset.learn_rate_factor, scale.l2_factor, layer.offset_l2_factor) == (2, 3, 4)

    def test_are_checked_by_the_layer(self):
        layer = trained_layer()
        offset, scale = layer.learnables
        before = snapshot(layer)
        for owner, name, value in [
            (scale, "value", np.ones(4)),
            (scale, "value", None),
            (scale, "value", np.ones((3, 3))),
            (offset, "learn_rate_factor", -1),
            (offset, "l2_factor", np.nan),
            (offset, "gradient", "steep"),
            (offset, "name", "bias"),
        ]:
            with pytest.raises((TypeError, ValueError, AttributeError)):
                setattr(owner, name, value)
        assert snapshot(layer) == before

    @pytest.mark.parametrize("factor", ["learn_rate_factor", "l2_factor"])
    def test_factors_by_name(self, factor):
        layer = Layer()
        for parameter in ("scale", "offset"):
            getattr(layer, f"set_{factor}")(parameter, 0.5)
            assert getattr(layer, factor)(parameter) == getattr(layer, f"{parameter}_{factor}") == 0.5
            with pytest.raises(ValueError, match=f"{parameter}_{factor} must be"):
                getattr(layer, f"set_{factor}")(parameter, -1)
        with pytest.raises(ValueError, match="'offset', 'scale', not 'weights'"):
            getattr(layer, factor)("weights")
        with pytest.raises(ValueError, match="'offset', 'scale', not 'weights'"):
            getattr(layer, f"set_{factor}")("weights", 1)

    def test_repr(self):
        assert repr(trained_layer().learnables[1]) == (
            "<Learnable 'scale': (3,) float32, learn_rate_factor=1.0, l2_factor=1.0>"
        )


EMPTY = """\
LayerNormalizationLayer with properties:

           name: 'layernorm'
   num_channels: 'auto'

   Hyperparameters
        epsilon: 1e-05

   Learnable parameters
         offset: []
          scale: []"""


def test_display():
    layer = Layer(name="layernorm")
    assert str(layer) == EMPTY
    layer.initialize(768)
    initialized = EMPTY.replace("'auto'", "768").replace("[]", "(768,) float32")
    assert str(layer) == initialized
    layer.name = ""
    assert str(layer) == initialized.replace("'layernorm'", "''")


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"name": "it's", "epsilon": 1e-3, "num_channels": 5, "dtype": "float64", "rng": 3},
        {"data_format": "SSCB", "operation_dimension": "auto", "scale_initializer": "narrow-normal"},
        {
            "scale": np.random.default_rng(0).standard_normal(2000),
            "offset_l2_factor": 0,
            "scale_learn_rate_factor": 0.1,
        },
        {"dtype": float, "offset": [0.1, 1e-30, 1 / 3, -0.0]},
    ],
)
def test_repr_is_python_that_makes_the_layer_again(properties):
    layer = Layer(**properties)
    with np.printoptions(precision=2, threshold=3):
        again = eval(repr(layer), {"LayerNormalizationLayer": Layer})
    assert snapshot(again) == snapshot(layer)


def test_repr_shows_functions_by_name():
    layer = Layer(scale_initializer=np.ones, rng=np.random.default_rng())
    assert repr(layer).startswith("LayerNormalizationLayer(scale_initializer=ones, rng=Generator(PCG64)")


class TestState:
    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), copy.copy])
    def test_copies_are_equal(self, clone):
        layer, x = (
            trained_layer(epsilon=0.01, data_format="BC", scale_initializer=np.ones),
            np.arange(6.0).reshape(2, 3),
        )
        again = clone(layer)
        assert snapshot(again) == snapshot(layer)
        assert oracle.bits(again.predict(x)) == oracle.bits(layer.predict(x))
        again.epsilon = 0.5
        assert layer.epsilon == 0.01
        with pytest.raises(RuntimeError):
            again.backward(x)

    def test_deepcopies_share_nothing(self):
        layer = trained_layer()
        again, learnables = copy.deepcopy((layer, layer.learnables))
        again.scale[...] = 9
        assert layer.scale.tolist() == [1, 2, -3] and learnables[1].value is again.scale

    @pytest.mark.parametrize("properties", [{}, {"scale": [1, 2]}, {"scale": [0.1, 2], "offset": [3, 4]}])
    def test_goes_through_savez(self, properties):
        file = io.BytesIO()
        np.savez(file, **Layer(**properties).state_dict())
        file.seek(0)
        again = Layer(offset=[8, 9])
        with np.load(file, allow_pickle=False) as state:
            again.load_state_dict(state)
        assert again.state_dict().keys() == {"offset", "scale"}
        for name in ("scale", "offset"):
            assert oracle.bits(getattr(again, name) if name in properties else 0) == oracle.bits(
                np.asarray(properties[name], np.float32) if name in properties else 0
            )
            assert (getattr(again, name) is None) == (name not in properties)

    def test_is_a_copy(self):
        layer = trained_layer()
        state = layer.state_dict()
        state["scale"][...] = 9
        assert layer.scale.tolist() == [1, 2, -3]
        layer.load_state_dict(before := trained_layer().state_dict())
        before["offset"][...] = 9
        assert layer.scale.tolist() == [1, 2, -3] and layer.offset[1] == 0

    @pytest.mark.parametrize(
        "state",
        [
            {},
            {"scale": np.ones(3)},
            {"scale": np.ones(3), "offset": np.ones(3), "mean": np.ones(3)},
            {"scale": np.ones(3), "offset": np.ones(4)},
            {"scale": np.ones(4), "offset": np.ones(4)},
            {"scale": np.ones((3, 3)), "offset": np.ones(3)},
            {"scale": np.ones(3), "offset": np.array(["a", "b", "c"])},
        ],
    )
    def test_that_does_not_fit_is_an_error_and_changes_nothing(self, state):
        layer = trained_layer()
        before = snapshot(layer)
        with pytest.raises((ValueError, TypeError)):
            layer.load_state_dict(state)
        assert snapshot(layer) == before

    def test_from_arrays(self):
        layer = Layer.from_arrays(np.float16([1, 2]), np.zeros((2, 1)), epsilon=1e-3, data_format="CB")
        assert layer.scale.tolist() == [1, 2] and layer.offset.tolist() == [0, 0]
        assert (layer.epsilon, layer.data_format, layer.num_channels) == (1e-3, "CB", 2)
        with pytest.raises(ValueError, match="epsilon"):
            Layer.from_arrays([1], [1], epsilon=1e-12)
        with pytest.raises(ValueError, match="one value per channel"):
            Layer.from_arrays([1, 2], [1, 2, 3])


MEMORY = """
import resource, sys
import numpy as np, lnorm
labels = sys.argv[1]
shape = {"BSSC": (64, 112, 112, 64), "BCSS": (64, 64, 112, 112), "SSCB": (112, 112, 64, 64)}[labels]
order = "F" if labels == "SSCB" else "C"
x, out = np.empty((2, 64 * 112 * 112 * 64), np.float32)
x[:] = 1
x[::7] = 3
out[:] = 0
x, out = x.reshape(shape, order=order), out.reshape(shape, order=order)
layer = lnorm.LayerNormalizationLayer(data_format=labels)
layer.predict(np.ones([2 if label == "B" else 64 if label == "C" else 3 for label in labels], np.float32))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer.predict(x, out=out)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) / (2**20 if sys.platform == "darwin" else 2**10))
"""


@pytest.mark.parametrize("labels", ["BSSC", "BCSS", "SSCB"])
def test_predict_takes_less_than_8_megabytes_beside_a_200_megabyte_batch(labels):
    pytest.importorskip("resource")
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, labels], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 8


def test_first_data_in_two_threads_at_once_fills_an_empty_layer_once():
    """Each thread is inside the initializer when the other is."""
    both, values = threading.Barrier(2, timeout=60), iter((np.full(3, 2.0), np.full(3, 5.0)))

    def initializer(sz):
        both.wait()
        return next(values)

    layer = lnorm.LayerNormalizationLayer(scale_initializer=initializer)
    x, results = np.array([[1.0, 2.0, 6.0]]), []
    jobs = [threading.Thread(target=lambda: results.append(layer(x).tolist())) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert results == [layer(x).tolist()] * 2
