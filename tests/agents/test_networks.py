"""Networks: shapes, encoders, and one call over time against one call per step."""

import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.networks.base import Head
from agents.networks.characters import CharacterConfig, character_network
from agents.networks.encoders import action_features, feature_size, observation_features, space_leaves
from agents.networks.implicit_quantile import implicit_quantile_network
from agents.networks.layers import convolution, orthogonal
from agents.networks.sequence import NetworkConfig, network
from envs.base import UnsupportedSpaceError

KEY = jax.random.key(0)
BOX = spaces.Box(-1, 1, (3,), np.float32)
SMALL = NetworkConfig(hidden=(8,))


@pytest.fixture(scope="module")
def recurrent():
    net = network(BOX, {"policy": Head(2)}, NetworkConfig(hidden=(8,), recurrent_size=5))
    params = jax.jit(net.init)(KEY)
    observation = jax.random.normal(jax.random.key(1), (7, 2, 3))
    return net, params, observation, jax.jit(net.apply)


def test_outputs_are_time_major_with_one_entry_per_head():
    net = network(BOX, {"policy": Head(4), "env": Head(1)}, SMALL)
    outputs, carry = net.apply(jax.jit(net.init)(KEY), jnp.ones((5, 2, 3)))
    assert {name: value.shape for name, value in outputs.items()} == {"policy": (5, 2, 4), "env": (5, 2, 1)}
    assert carry == () and net.initial_carry(2) == () and not net.recurrent


def test_a_feed_forward_network_equals_its_formula():
    net = network(BOX, {"policy": Head(2)}, NetworkConfig(hidden=(8, 8), activation="relu"))
    params = jax.tree.map(lambda x: x + 0.1, jax.jit(net.init)(KEY))
    x = np.array(jax.random.normal(jax.random.key(1), (4, 3, 3)))
    expected = x
    for layer in ("dense_0", "dense_1"):
        expected = np.maximum(expected @ params[layer]["kernel"] + params[layer]["bias"], 0)
    expected = expected @ params["head_policy"]["kernel"] + params["head_policy"]["bias"]
    np.testing.assert_allclose(jax.jit(net.apply)(params, x)[0]["policy"], expected, rtol=1e-4, atol=1e-5)


def test_initial_weights_are_orthogonal_with_their_gain():
    net = network(BOX, {"policy": Head(2, scale=0.01)}, NetworkConfig(hidden=(8, 16)))
    params = jax.jit(net.init)(KEY)
    for layer, gain in (("dense_0", np.sqrt(2)), ("dense_1", np.sqrt(2)), ("head_policy", 0.01)):
        kernel = np.asarray(params[layer]["kernel"])
        gram = kernel.T @ kernel if kernel.shape[0] >= kernel.shape[1] else kernel @ kernel.T
        np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5)
        assert not np.any(params[layer]["bias"])


def test_initial_weights_are_computed_in_full_float32(products):
    # On the CPU all products are; on a GPU only those that ask for it.
    assert products(lambda key: orthogonal(1.0)(key, (4, 8)), KEY) == (2, 2)


def test_free_parameters_do_not_depend_on_the_observation():
    net = network(BOX, {"policy": Head(4, num_free=2)}, SMALL)
    params = jax.jit(net.init)(KEY) | {"free_policy": jnp.array([0.5, -0.5])}
    output = jax.jit(net.apply)(params, jax.random.normal(KEY, (3, 2, 3)))[0]["policy"]
    np.testing.assert_array_equal(output[..., 2:], jnp.broadcast_to(jnp.array([0.5, -0.5]), (3, 2, 2)))
    assert np.std(output[..., 0]) > 0


def test_layer_norm_makes_features_of_unit_scale():
    net = network(BOX, {"policy": Head(2)}, NetworkConfig(hidden=(64,), layer_norm=True))
    params = jax.jit(net.init)(KEY)
    x = jax.random.normal(KEY, (3, 2, 3))
    # Before the activation, the features do not depend on the scale of the observation (biases are zero).
    apply = jax.jit(net.apply)
    outputs = [apply(params, scale * x)[0]["policy"] for scale in (1.0, 1000.0)]
    np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-3)


def test_one_call_over_time_equals_one_call_per_step(recurrent):
    net, params, observation, apply = recurrent
    whole, last = apply(params, observation, net.initial_carry(2), None)
    carry, steps = net.initial_carry(2), []
    for t in range(7):
        output, carry = apply(params, observation[t : t + 1], carry, None)
        steps.append(output["policy"][0])
    np.testing.assert_allclose(whole["policy"], jnp.stack(steps), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, carry, rtol=1e-5, atol=1e-6)
    # The network does remember: the same observation gives another output later.
    same = apply(params, jnp.ones((7, 2, 3)), net.initial_carry(2), None)[0]["policy"]
    assert np.abs(same[0] - same[3]).max() > 1e-3


def test_episode_start_resets_the_carry(recurrent):
    net, params, observation, apply = recurrent
    start = jnp.zeros((7, 2), bool).at[3, 0].set(True)
    stale = jnp.full((2, 5), 0.7)
    together, _ = apply(params, observation, stale, start)
    first, _ = apply(params, observation[:3], stale, None)
    second, _ = apply(params, observation[3:], net.initial_carry(2), None)
    uncut, _ = apply(params, observation, stale, None)
    np.testing.assert_allclose(together["policy"][:3, 0], first["policy"][:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together["policy"][3:, 0], second["policy"][:, 0], rtol=1e-5, atol=1e-6)
    # The other column does not change.
    np.testing.assert_allclose(together["policy"][:, 1], uncut["policy"][:, 1], rtol=1e-5, atol=1e-6)
    assert np.abs(together["policy"][3:, 0] - uncut["policy"][3:, 0]).max() > 1e-3


def test_a_start_at_the_first_row_drops_a_stale_carry(recurrent):
    net, params, observation, apply = recurrent
    start = jnp.zeros((7, 2), bool).at[0].set(True)
    np.testing.assert_allclose(
        apply(params, observation, jnp.full((2, 5), 0.7), start)[0]["policy"],
        apply(params, observation, net.initial_carry(2), None)[0]["policy"],
        rtol=1e-5,
        atol=1e-6,
    )


def identity(space: gymnasium.Space):
    """A network whose head returns the encoded observation unchanged."""
    net = network(space, {"policy": Head(1)}, NetworkConfig(hidden=()))
    size = jax.eval_shape(net.init, KEY)["head_policy"]["kernel"].shape[0]
    return lambda x: network(space, {"policy": Head(size)}, NetworkConfig(hidden=())).apply(
        {"head_policy": {"kernel": jnp.eye(size), "bias": jnp.zeros(size)}}, x
    )[0]["policy"]


def at_one_step(observation):
    return jax.tree.map(lambda x: jnp.asarray(x)[None, None], observation, is_leaf=lambda x: isinstance(x, list))


ENCODINGS = {
    "box": (spaces.Box(-1, 1, (2,), np.float32), [0.5, -0.5], [0.5, -0.5]),
    "scalar box": (spaces.Box(-1, 1, (), np.float32), 0.5, [0.5]),
    "matrix": (spaces.Box(-1, 1, (2, 2), np.float32), [[1, 2], [3, 4]], [1, 2, 3, 4]),
    "unbounded": (spaces.Box(-np.inf, np.inf, (1,), np.float32), [30.0], [30.0]),
    "bytes": (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 51], np.uint8), [0, 0.2]),
    "uneven integers": (spaces.Box(np.array([0, -4]), np.array([10, 4]), dtype=np.int32), [5, -2], [0.5, -0.5]),
    "integers with the bounds of their type": (
        spaces.Box(np.iinfo(np.int32).min, np.iinfo(np.int32).max, (2,), np.int32),
        [3, -7],
        [3, -7],
    ),
    "64-bit integers without bounds": (spaces.Box(-np.inf, np.inf, (1,), np.int64), [3], [3]),
    "one bounded integer beside one without": (
        spaces.Box(np.array([0, 0]), np.array([10, np.iinfo(np.int32).max]), dtype=np.int32),
        [5, 7],
        [0.5, 7],
    ),
    "integers without room above": (spaces.Box(-3, 0, (1,), np.int32), [-2], [-2]),
    "discrete": (spaces.Discrete(3), 2, [0, 0, 1]),
    "discrete from a start": (spaces.Discrete(3, start=-1), -1, [1, 0, 0]),
    "multi-discrete": (spaces.MultiDiscrete(np.array([2, 3])), [1, 0], [0, 1, 1, 0, 0]),
    "multi-discrete from a start": (
        spaces.MultiDiscrete(np.array([2, 3]), start=np.array([5, 1])),
        [5, 3],
        [1, 0, 0, 0, 1],
    ),
    "multi-binary": (spaces.MultiBinary((2, 2)), np.array([[0, 1], [1, 1]], np.int8), [0, 1, 1, 1]),
    "dict by sorted name": (
        spaces.Dict(b=spaces.Discrete(2), a=spaces.Box(-1, 1, (1,), np.float32)),
        {"b": 1, "a": [0.5]},
        [0.5, 0, 1],
    ),
    "nested": (
        spaces.Tuple((spaces.Dict(x=spaces.Discrete(2)), spaces.MultiBinary(1))),
        ({"x": 0}, np.array([1], np.int8)),
        [1, 0, 1],
    ),
}


@pytest.mark.parametrize(("space", "observation", "features"), ENCODINGS.values(), ids=ENCODINGS)
def test_encoders_by_hand(space, observation, features):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded = identity(space)(at_one_step(observation))
    np.testing.assert_allclose(encoded, [[features]], rtol=1e-6)


def test_images_go_through_convolutions_and_other_leaves_around_them():
    space = spaces.Dict(image=spaces.Box(0, 255, (6, 6, 3), np.uint8), speed=spaces.Box(-1, 1, (2,), np.float32))
    net = network(space, {"policy": Head(2)}, NetworkConfig(hidden=(8,), channels=(4, 5), strides=(2, 1)))
    params = jax.jit(net.init)(KEY)
    assert params["conv_0_0"]["kernel"].shape == (3, 3, 3, 4)
    assert params["conv_0_1"]["kernel"].shape == (3, 3, 4, 5)
    # A stride of 2 leaves 3 x 3 of 6 x 6; 5 channels and 2 speeds.
    assert params["dense_0"]["kernel"].shape == (3 * 3 * 5 + 2, 8)
    image = jax.random.randint(KEY, (2, 3, 6, 6, 3), 0, 256).astype(jnp.uint8)
    observation = {"image": image, "speed": jnp.ones((2, 3, 2))}
    output = jax.jit(net.apply)(params, observation)[0]["policy"]
    assert output.shape == (2, 3, 2)
    one = jax.tree.map(lambda x: x[1:, 2:], observation)
    np.testing.assert_allclose(jax.jit(net.apply)(params, one)[0]["policy"][0, 0], output[1, 2], rtol=1e-4, atol=1e-5)


def test_kernels_and_the_norm_of_images():
    """The layers of DQN's network, and channels with mean 0 and deviation 1 before the activation."""
    space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    shape = {"hidden": (8,), "channels": (3, 4, 5), "strides": (4, 2, 1), "kernels": (8, 4, 3)}
    net = network(space, {"policy": Head(2)}, NetworkConfig(**shape))
    params = jax.eval_shape(net.init, KEY)
    kernels = [params[f"conv_0_{layer}"]["kernel"].shape for layer in range(3)]
    assert kernels == [(8, 8, 4, 3), (4, 4, 3, 4), (3, 3, 4, 5)]
    assert params["dense_0"]["kernel"].shape == (11 * 11 * 5, 8)

    space = spaces.Box(-1, 1, (1, 1, 3), np.float32)
    config = NetworkConfig(hidden=(), channels=(6,), kernels=(1,), image_norm=True, activation="relu")
    net = network(space, {"policy": Head(6)}, config)
    params = net.init(KEY)
    image = jax.random.normal(KEY, (1, 1, 1, 1, 3))
    before = image[0, 0, 0, 0] @ params["conv_0_0"]["kernel"][0, 0]
    features = np.maximum((before - before.mean()) / np.sqrt(before.var() + 1e-6), 0)
    expected = features @ params["head_policy"]["kernel"] + params["head_policy"]["bias"]
    np.testing.assert_allclose(net.apply(params, image)[0]["policy"][0, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 10, 10), (3, 12, 9), (1, 6, 6)], ids=str)
def test_an_image_with_channels_first_is_convolved_over_its_pixels(shape):
    first, last = (spaces.Box(0, 255, size, np.uint8) for size in (shape, (*shape[1:], shape[0])))
    config = NetworkConfig(hidden=(4,), channels=(2,), strides=(2,))
    nets = [network(space, {"policy": Head(2)}, config) for space in (first, last)]
    params = nets[1].init(KEY)
    assert jax.tree.map(jnp.shape, nets[0].init(KEY)) == jax.tree.map(jnp.shape, params)
    image = jax.random.randint(KEY, (1, 2, *shape), 0, 256).astype(jnp.uint8)
    outputs = [
        net.apply(params, x)[0]["policy"] for net, x in zip(nets, (image, jnp.moveaxis(image, 2, -1)), strict=True)
    ]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("shape", [(6, 6, 4), (7, 7, 20), (10, 10, 3), (5, 8, 3)], ids=str)
def test_an_image_with_channels_last_stays_as_it_is(shape):
    net = network(spaces.Box(0, 1, shape, np.uint8), {"policy": Head(2)}, NetworkConfig(hidden=(4,), channels=(2,)))
    assert net.init(KEY)["conv_0_0"]["kernel"].shape == (3, 3, shape[-1], 2)


def test_without_channels_images_are_flattened():
    net = network(spaces.Box(0, 255, (4, 4, 3), np.uint8), {"policy": Head(2)}, SMALL)
    assert jax.eval_shape(net.init, KEY)["dense_0"]["kernel"].shape == (48, 8)


def test_leaves_come_in_the_order_of_the_tree():
    space = spaces.Dict(b=spaces.Tuple((spaces.Discrete(2), BOX)), a=spaces.Discrete(3))
    paths = [path for path, _ in space_leaves(space)]
    assert paths == [("a",), ("b", 0), ("b", 1)]
    leaves = jax.tree_util.tree_flatten_with_path({"b": (0, 1), "a": 2})[0]
    assert [tuple(getattr(k, "key", getattr(k, "idx", None)) for k in path) for path, _ in leaves] == paths


@pytest.mark.parametrize(
    "space",
    [spaces.Text(3), spaces.Dict(a=spaces.Text(3)), spaces.MultiDiscrete(np.array([[2], [2]])), spaces.Dict()],
)
def test_spaces_without_an_encoder_are_refused(space):
    with pytest.raises(UnsupportedSpaceError, match=r"(?s)no encoder for the observation space"):
        network(space, {"policy": Head(1)}, SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "tahn"}, "unknown activation 'tahn', did you mean 'tanh'.*known: tanh, relu"),
        ({"activation": "zzzz"}, "unknown activation 'zzzz', did you mean .*known: tanh, relu"),
        ({"channels": (4, 4), "strides": (2,)}, r"strides=\(2,\): expected one per channel width \(4, 4\)"),
        ({"channels": (4,), "kernels": (8, 4)}, r"kernels=\(8, 4\): expected one per channel width \(4,\)"),
        ({"channels": (4,), "kernels": (0,)}, r"kernels=\(0,\): expected numbers of at least 1"),
        ({"hidden": (8, 0)}, r"hidden=\(8, 0\): expected numbers of at least 1"),
        ({"recurrent_size": -1}, "recurrent_size=-1: expected at least 0"),
    ],
)
def test_a_bad_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**arguments)


@pytest.mark.parametrize(("size", "stride"), [((5, 7), 1), ((6, 5), 2), ((24, 24), 4)])
def test_the_convolution_equals_the_one_of_the_library(size, stride):
    images = jax.random.normal(KEY, (2, *size, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def ours(images, kernel):
        return convolution(images, kernel, (stride, stride), "SAME", **options)

    def theirs(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (stride, stride), "SAME", **options)

    np.testing.assert_allclose(ours(images, kernel), theirs(images, kernel), atol=1e-5)
    gradients = [jax.grad(lambda *x, f=f: jnp.sum(f(*x) ** 2), (0, 1))(images, kernel) for f in (ours, theirs)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3), *gradients)


def test_actions_as_features():
    space = spaces.Tuple(
        [spaces.Discrete(3, start=5), spaces.Box(-1, 1, (2,), np.float32), spaces.MultiDiscrete([2, 2])]
    )
    action = (jnp.array([[2]]), jnp.array([[[0.5, 3.0]]]), jnp.array([[[1, 0]]]))
    # Actions count from 0, are clipped to the bounds, and are one-hot part by part.
    np.testing.assert_array_equal(action_features(space, action), [[[0, 0, 1, 0.5, 1, 0, 1, 1, 0]]])
    assert feature_size(space) == 9
    for each in (spaces.Discrete(4), spaces.MultiBinary(3), spaces.Box(0, 1, (2, 2), np.float32)):
        assert action_features(each, jnp.asarray(each.sample())[None, None]).shape == (1, 1, feature_size(each))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_features_have_32_bits_where_64_are_enabled(space):
    with jax.enable_x64(True):
        observation = jnp.asarray(space.sample())[None, None]
        assert observation_features(space, observation).dtype == jnp.float32


def test_a_character_network_equals_its_formula():
    config = CharacterConfig(embedding_size=3, channels=4, kernels=(3, 2), pools=(2, 1), hidden=(5,))
    net = character_network(12, config)
    params = jax.tree.map(lambda x: np.asarray(x + 0.1), jax.jit(net.init)(KEY))
    text = np.array([b"the key is.\0", b"\xff\x01 a door is"]).view(np.uint8).reshape(2, 12)

    def by_numpy(row):
        x = params["embedding"][row]
        for weights, pool in zip(params["convolutions"], config.pools, strict=True):
            kernel = weights["kernel"][0]
            windows = [x[start : start + len(kernel)] for start in range(len(x) - len(kernel) + 1)]
            x = np.maximum([np.einsum("kc,kcf->f", window, kernel) for window in windows] + weights["bias"], 0)
            # 10 positions become 5, of which the second layer leaves 4.
            x = np.stack([x[start : start + pool].max(0) for start in range(0, len(x) - pool + 1, pool)])
        x = np.maximum(x.reshape(-1) @ params["dense"][0]["kernel"] + params["dense"][0]["bias"], 0)
        return x @ params["output"]["kernel"][:, 0] + params["output"]["bias"][0]

    assert params["dense"][0]["kernel"].shape == (config.width(12) * 4, 5) == (16, 5)
    np.testing.assert_allclose(jax.jit(net.apply)(params, text), [by_numpy(row) for row in text], rtol=1e-4)


def test_the_character_network_of_the_paper_has_five_positions_left():
    config = CharacterConfig(32, 64, (7, 7, 3, 3, 3, 3), (3, 3, 1, 1, 1, 3), (128,))
    shapes = jax.eval_shape(character_network(256, config).init, KEY)
    assert shapes["dense"][0]["kernel"].shape == (5 * 64, 128)
    with pytest.raises(ValueError, match="leave nothing of 64 characters"):
        character_network(64, config)


# The parameters that a key gives: a checkpoint stores them by position, so that neither names nor order may change.
SEQUENCE = {
    "conv_0_0/bias": ((2,), 0.0),
    "conv_0_0/kernel": ((3, 3, 3, 2), 12.42809),
    "dense_0/bias": ((4,), 0.0),
    "dense_0/kernel": ((10, 4), 14.01525),
    "dense_1/bias": ((3,), 0.0),
    "dense_1/kernel": ((4, 3), 7.871133),
    "free_policy": ((1,), 0.0),
    "gru/hn/bias": ((3,), 0.0),
    "gru/hn/kernel": ((3, 3), 4.750074),
    "gru/hr/kernel": ((3, 3), 4.794971),
    "gru/hz/kernel": ((3, 3), 4.809977),
    "gru/in/bias": ((3,), 0.0),
    "gru/in/kernel": ((3, 3), 2.805241),
    "gru/ir/bias": ((3,), 0.0),
    "gru/ir/kernel": ((3, 3), 4.861282),
    "gru/iz/bias": ((3,), 0.0),
    "gru/iz/kernel": ((3, 3), 4.033916),
    "head_env/bias": ((1,), 0.0),
    "head_env/kernel": ((3, 1), 1.432343),
    "head_policy/bias": ((2,), 0.0),
    "head_policy/kernel": ((3, 2), 0.03051112),
    "norm_0/bias": ((4,), 0.0),
    "norm_0/scale": ((4,), 4.0),
    "norm_1/bias": ((3,), 0.0),
    "norm_1/scale": ((3,), 3.0),
}
IMPLICIT_QUANTILE = {
    "dense_0/bias": ((4,), 0.0),
    "dense_0/kernel": ((3, 4), 6.630975),
    "fraction/bias": ((4,), 0.0),
    "fraction/kernel": ((5, 4), 10.73071),
    "head_quantile/bias": ((2,), 0.0),
    "head_quantile/kernel": ((4, 2), 3.456903),
}
CHARACTERS = {
    "convolutions/0/bias": ((4,), 0.0),
    "convolutions/0/kernel": ((1, 3, 3, 4), 14.19117),
    "convolutions/1/bias": ((4,), 0.0),
    "convolutions/1/kernel": ((1, 2, 4, 4), 13.30758),
    "dense/0/bias": ((5,), 0.0),
    "dense/0/kernel": ((16, 5), 23.3682),
    "embedding": ((256, 3), 603.835),
    "output/bias": ((1,), 0.0),
    "output/kernel": ((5, 1), 0.1881621),
}


def test_parameters_keep_their_names_their_order_and_their_initial_values():
    space = spaces.Dict(image=spaces.Box(0, 255, (4, 4, 3), np.uint8), speed=spaces.Box(-1, 1, (2,), np.float32))
    config = NetworkConfig(hidden=(4, 3), channels=(2,), strides=(2,), recurrent_size=3, layer_norm=True)
    characters = CharacterConfig(embedding_size=3, channels=4, kernels=(3, 2), pools=(2, 1), hidden=(5,))
    networks = [
        (network(space, {"policy": Head(3, scale=0.01, num_free=1), "env": Head(1)}, config), SEQUENCE),
        (implicit_quantile_network(BOX, Head(2), NetworkConfig(hidden=(4,)), cosines=5), IMPLICIT_QUANTILE),
        (character_network(12, characters), CHARACTERS),
    ]
    for made, expected in networks:
        leaves = jax.tree_util.tree_flatten_with_path(jax.jit(made.init)(jax.random.key(7)))[0]
        found = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
        assert list(found) == list(expected)
        for name, (shape, size) in expected.items():
            assert found[name].shape == shape, name
            np.testing.assert_allclose(np.sum(np.abs(found[name])), size, rtol=1e-5, err_msg=name)
