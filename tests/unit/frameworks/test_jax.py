from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from broker_fl.errors import SettingError, TaskCancelled
from broker_fl.frameworks import LocalTask
from broker_fl.frameworks.jax import JaxLearner, Variables, from_arrays, sgd, to_arrays
from broker_fl.interfaces import Learner, Parameters
from broker_fl.model import Array, Model, ModelError
from tests.unit.frameworks.recording import Recording

NUM = 130


def params(seed: int = 0) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 2)
    sizes = [(6, 16), (16, 3)]
    layers = [
        {"w": jax.random.normal(key, size) / np.sqrt(size[0]), "b": jnp.zeros(size[1])}
        for key, size in zip(keys, sizes, strict=True)
    ]
    return {"layers": layers}


def scores(model: Any, inputs: Any) -> Any:
    first, last = model["layers"]
    return jax.nn.relu(inputs @ first["w"] + first["b"]) @ last["w"] + last["b"]


def loss(model: Any, inputs: Any, targets: Any) -> Any:
    found = scores(model, inputs)
    right = jax.nn.log_softmax(found)[jnp.arange(len(targets)), targets]
    return -right.mean(), {"accuracy": (found.argmax(1) == targets).mean()}


def examples(num: int = NUM) -> tuple[Array, Array]:
    inputs = np.random.default_rng(1).standard_normal((num, 6)).astype(np.float32)
    return inputs, inputs[:, :3].argmax(axis=1)


FAST = partial(sgd, learning_rate=0.3)
"""One for all learners here: they share what is compiled."""


def learner(**options: Any) -> JaxLearner:
    return JaxLearner(params(), loss, examples(), **{"optimizer": FAST} | options)


# ---------------------------------------------------------------- conversions


class Block(NamedTuple):
    kernel: Any
    scale: Any


def test_every_leaf_travels_under_its_path_and_comes_back_bit_by_bit() -> None:
    tree = {
        "blocks": [Block(jnp.arange(6.0).reshape(2, 3), jnp.float32(2)), (jnp.ones(2, jnp.bfloat16), None)],
        "steps": np.array([3], np.int32),
        "mask": jnp.array([True, False]),
    }
    arrays = Model.of(to_arrays(tree))
    names = ["blocks/0/kernel", "blocks/0/scale", "blocks/1/0", "mask", "steps"]
    assert list(arrays) == names
    back = from_arrays(arrays, jax.tree.map(jnp.zeros_like, tree))
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, tree)
    assert Model.of(to_arrays(back)).digest == arrays.digest
    arrays["steps"][...] = 9
    assert to_arrays(back)["steps"] == 3  # nothing is shared
    assert list(to_arrays(jnp.ones(2))) == ["model"]


def test_tied_weights_are_carried_once_and_stay_tied() -> None:
    table = jnp.ones((4, 2))
    tree = {"embed": table, "body": jnp.zeros(2), "unembed": [table]}
    arrays = to_arrays(tree)
    assert list(arrays) == ["body", "embed"]
    back = from_arrays({**arrays, "embed": np.full((4, 2), 7, np.float32)}, tree)
    assert back["embed"] is back["unembed"][0]
    assert (back["embed"] == 7).all()


def test_the_gradients_of_tied_weights_come_from_both_places() -> None:
    def product(tree: Any, inputs: Any, targets: Any) -> Any:
        return ((inputs * tree["a"] * tree["b"] - targets) ** 2).mean()

    w = jnp.array(2.0)
    data = (np.ones(4, np.float32), np.ones(4, np.float32))
    site = JaxLearner({"a": w, "b": w}, product, data, optimizer=partial(sgd, learning_rate=0.01))
    update = site.train(site.initial_model(), LocalTask())
    assert list(update.model) == ["a"]
    assert update.model["a"] == pytest.approx(2 - 0.01 * 2 * (4 - 1) * 2 * 2)  # d (w² - 1)² / dw


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (3.5, "leaf 'x' of the pytree is a float, not an array: make it one with jnp.asarray"),
        (jax.nn.relu, "leaf 'x' of the pytree is a .*, not an array"),
        (jax.random.key(0), "leaf 'x' of the pytree is a random key; it cannot travel"),
        (np.ones(2), "leaf 'x' of the pytree is float64, which JAX would make float32: convert it"),
        (jnp.ones(2, jnp.complex64), "tensor 'x': element type complex64 is not one of"),
    ],
    ids=["float", "function", "key", "float64", "complex"],
)
def test_what_cannot_travel_is_named(leaf: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        to_arrays({"x": leaf})


def test_two_leaves_of_one_name_are_refused() -> None:
    with pytest.raises(ModelError, match="two leaves of the pytree have the name 'a/b'"):
        to_arrays({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})


def test_a_model_that_does_not_fit_is_refused() -> None:
    arrays = {**to_arrays(params()), "layers/0/b": np.zeros(3, np.float32)}
    with pytest.raises(ModelError, match=r"does not fit this pytree: tensor 'layers/0/b' has shape \(3,\)"):
        from_arrays(arrays, params())
    with pytest.raises(ModelError, match="does not fit this pytree"):
        learner().train(arrays, LocalTask())


# ---------------------------------------------------------------- the learner


def test_training_learns_and_evaluation_says_so() -> None:
    site = learner()
    model = Model.of(site.initial_model())
    before = site.evaluate(model, LocalTask())
    update = site.train(model, LocalTask(parameters={"epochs": 12, "seed": 0}))
    after = site.evaluate(update.model, LocalTask())
    assert isinstance(site, Learner)
    assert before["num_examples"] == NUM
    assert before["accuracy"] < 0.6 < 0.9 < after["accuracy"]
    assert after["loss"] < before["loss"]
    assert set(update.metrics) == {"loss", "accuracy"}
    assert (update.num_examples, update.num_steps, update.num_epochs) == (NUM, 12 * 5, 12)


def test_evaluation_is_the_mean_over_all_examples_whatever_the_batches() -> None:
    site, model = learner(), learner().initial_model()
    inputs, targets = examples()
    value, more = loss(params(), inputs, targets)
    expected = {"loss": float(value), "accuracy": float(more["accuracy"]), "num_examples": NUM}
    for size in (130, 32, 7):
        found = site.evaluate(model, LocalTask(parameters={"batch_size": size}))
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_result_is_in_the_arrays_that_came() -> None:
    site = learner()
    model = Model.of(site.initial_model())
    before = model.digest
    update = site.train(dict(model), LocalTask())
    assert Model.of(update.model).buffer is model.buffer
    assert model.digest != before == Model.of(site.initial_model()).digest


def test_the_seed_decides_the_result() -> None:
    site = learner()

    def digest(seed: int, learner_id: str = "a") -> str:
        task = LocalTask(learner=learner_id, parameters={"epochs": 2, "seed": seed})
        return Model.of(site.train(site.initial_model(), task).model).digest

    assert digest(1) == digest(1)
    assert len({digest(1), digest(2), digest(1, "b")}) == 3


def test_steps_end_training_in_the_middle_of_an_epoch_and_beyond_one() -> None:
    site = learner()
    for steps, drawn in ((3, 30), (20, 200), (26, 260)):
        parameters = {"steps": steps, "batch_size": 10, "epochs": 9}
        update = site.train(site.initial_model(), LocalTask(parameters=parameters))
        assert (update.num_steps, update.num_epochs) == (steps, drawn / NUM)
        assert update.num_examples == min(drawn, NUM)
    update = site.train(site.initial_model(), LocalTask(parameters={"steps": 6}))
    assert (update.num_steps, update.num_epochs) == (6, 1 + 32 / NUM)  # the fifth batch has 2 examples


def test_an_optimizer_of_optax_fits_and_begins_afresh_with_the_jobs_learning_rate() -> None:
    site = learner(optimizer=partial(optax.adam, learning_rate=1e-2))

    def trained(**parameters: Any) -> Model:
        task = LocalTask(parameters={"steps": 5, "batch_size": NUM, "seed": 0, **parameters})
        return Model.of(site.train(site.initial_model(), task).model)

    found, other = trained(), trained(learning_rate=0.1)
    assert trained().digest == found.digest != other.digest
    model, optimizer = params(), optax.adam(1e-2)
    state, (inputs, targets) = optimizer.init(model), examples()
    gradient = jax.jit(jax.grad(lambda p: loss(p, inputs, targets)[0]))
    for _ in range(5):
        gradients = gradient(model)
        changes, state = optimizer.update(gradients, state, model)
        model = optax.apply_updates(model, changes)
    for name, array in to_arrays(model).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_proximal_term_is_that_of_fedprox_against_the_model_that_was_received() -> None:
    """Full batches and plain SGD, beside a loop whose loss has the term in it; a task without it between."""
    site, received = learner(), Model.of(to_arrays(params(seed=3)))
    inputs, targets = examples()
    for mu in (0.7, 0.0, 0.2):
        parameters = {"steps": 5, "batch_size": NUM, "proximal_mu": mu, "learning_rate": 0.1}
        found = site.train(received.copy(), LocalTask(parameters=parameters)).model
        model = start = params(seed=3)

        def held(p: Any, mu: float = mu, start: Any = start) -> Any:
            away = jax.tree.map(lambda w, w0: ((w - w0) ** 2).sum(), p, start)
            return loss(p, inputs, targets)[0] + mu / 2 * sum(jax.tree.leaves(away))

        gradient = jax.jit(jax.grad(held))
        for _ in range(5):
            model = jax.tree.map(lambda w, g: w - 0.1 * g, model, gradient(model))
        for name, array in to_arrays(model).items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_progress_is_told_after_each_step_and_cancelling_leaves_a_learner_that_works_on() -> None:
    site, task = learner(), Recording(parameters={"epochs": 2, "batch_size": 65})
    site.train(site.initial_model(), task)
    assert task.told == [0.25, 0.5, 0.75, 1]
    cancelled = Recording(cancel_after=3, parameters={"epochs": 50})
    with pytest.raises(TaskCancelled):
        site.train(site.initial_model(), cancelled)
    assert len(cancelled.told) == 3
    assert site.train(site.initial_model(), LocalTask()).num_steps == 5
    evaluation = Recording(parameters={"batch_size": 65})
    site.evaluate(site.initial_model(), evaluation)
    assert evaluation.told == [0.5, 1]


# ---------------------------------------------------------------- with a state


def normalised(variables: Variables, inputs: Any, targets: Any, key: Any) -> Any:
    """Batch normalisation and dropout before the network of above."""
    state = variables.state
    mean, var = (inputs.mean(0), inputs.var(0)) if key is not None else (state["mean"], state["var"])
    hidden = (inputs - mean) / jnp.sqrt(var + 1e-5)
    if key is not None:
        hidden = hidden * jax.random.bernoulli(key, 0.8, hidden.shape) / 0.8
    value, metrics = loss(variables.params, hidden, targets)
    after = {
        "mean": 0.5 * state["mean"] + 0.5 * mean,
        "var": 0.5 * state["var"] + 0.5 * var,
        "count": state["count"] + 1,
    }
    return value, (after, metrics)


def with_state(change: Any = None) -> JaxLearner:
    state = {"mean": jnp.zeros(6), "var": jnp.ones(6), "count": jnp.zeros((), jnp.int32)}
    inputs, targets = examples()
    function = normalised if change is None else change
    return JaxLearner(Variables(params(), state), function, (inputs + 5, targets), optimizer=FAST)


def test_running_statistics_travel_and_are_used_in_evaluation() -> None:
    site = with_state()
    start = Model.of(site.initial_model())
    assert list(start) == [
        *(f"params/layers/{layer}/{name}" for layer in (0, 1) for name in ("b", "w")),
        *("state/count", "state/mean", "state/var"),
    ]
    update = site.train(start.copy(), LocalTask(parameters={"epochs": 20, "batch_size": 65, "seed": 0}))
    assert update.model["state/count"] == 40
    assert update.model["state/count"].dtype == np.int32
    np.testing.assert_allclose(update.model["state/mean"], 5, atol=0.5)
    first, again = (site.evaluate(update.model, LocalTask()) for _ in range(2))
    assert first == again
    assert first["accuracy"] > 0.8 > site.evaluate(start, LocalTask())["accuracy"]


def test_dropout_is_as_the_seed_says() -> None:
    site = with_state()

    def digest(seed: int) -> str:
        task = LocalTask(parameters={"steps": 2, "batch_size": NUM, "seed": seed})
        return Model.of(site.train(site.initial_model(), task).model).digest

    assert digest(1) == digest(1) != digest(2)


def test_a_state_that_changes_its_shape_is_refused() -> None:
    def wrong(variables: Variables, inputs: Any, targets: Any, key: Any) -> Any:
        value, (state, metrics) = normalised(variables, inputs, targets, key)
        return value, ({**state, "mean": jnp.zeros(5)}, metrics)

    site = with_state(wrong)
    with pytest.raises(SettingError, match=r"the loss gave back a state of shapes .*\(5,\).* instead of"):
        site.train(site.initial_model(), LocalTask())


# ---------------------------------------------------------------- settings


def test_wrong_settings_are_named() -> None:
    inputs, targets = examples()
    for options, message in (
        ({"train_data": (inputs[:0], targets[:0])}, "train_data is empty"),
        ({"train_data": (inputs, targets[1:])}, r"arrays of train_data have \[129, 130\] rows"),
        ({"test_data": (inputs, targets, None)}, "test_data has 3 parts"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used"),
        ({"device": "cpu:99"}, "device 'cpu:99' cannot be used"),
        ({"model": {"n": jnp.arange(3)}}, r"leaf 'n' of the pytree is int32: no gradient can train it; give"),
    ):
        given: dict[str, Any] = {"model": params(), "train_data": (inputs, targets)} | options
        with pytest.raises(SettingError, match=message):
            JaxLearner(loss=loss, **given)
    learner(device="auto")


def test_it_trains_on_the_device_that_it_is_given() -> None:
    """In a process of its own: a second device of a CPU has to be asked for before JAX starts."""
    program = """
import jax, numpy as np
from broker_fl.frameworks import LocalTask
from broker_fl.frameworks.jax import JaxLearner, sgd

def optimizer():
    plain = sgd(0.01)
    return plain._replace(init=lambda params: print(params["w"].devices() == {jax.devices("cpu")[1]}) or ())

def loss(params, x, y):
    return ((x @ params["w"] - y) ** 2).mean()

data = np.ones((8, 2), np.float32), np.ones(8, np.float32)
site = JaxLearner({"w": np.zeros(2, np.float32)}, loss, data, optimizer=optimizer, device="cpu:1")
print(site.train(site.initial_model(), LocalTask()).model["w"].round(6).tolist())
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=110)
    assert done.stdout.splitlines() == ["True", "[0.019999999552965164, 0.019999999552965164]"]


@pytest.mark.parametrize("parameters", [{"learning_rate": 0}, {"proximal_mu": -1}])
def test_parameters_are_checked(parameters: Parameters) -> None:
    site = learner()
    with pytest.raises(SettingError, match="it must be a number"):
        site.train(site.initial_model(), LocalTask(parameters=parameters))


def test_scaffold_corrects_each_gradient_and_gives_the_mean_of_those_before() -> None:
    """Full batches and plain SGD, beside a loop by hand; a task without it between."""
    site, received, rng = learner(), Model.of(to_arrays(params(seed=3))), np.random.default_rng(0)
    inputs, targets = examples()
    gradient, num_steps = jax.jit(jax.grad(lambda p: loss(p, inputs, targets)[0])), 4
    for strength in (1.0, None, 0.5):
        control = None
        if strength is not None:
            control = {n: (strength * rng.normal(size=a.shape)).astype("f4") for n, a in received.items()}
        parameters = {"steps": num_steps, "batch_size": NUM, "learning_rate": 0.1}
        found = site.train(received.copy(), LocalTask(parameters=parameters, control=control))
        model, mean = params(seed=3), {name: np.zeros(array.shape) for name, array in received.items()}
        for _ in range(num_steps):
            now = gradient(model)
            mean = {name: mean[name] + array / num_steps for name, array in to_arrays(now).items()}
            model = jax.tree.map(lambda w, g: w - 0.1 * g, model, now)
            if control is not None:
                leaves, shape = jax.tree.flatten(model)
                moved = [w - 0.1 * control[n] for w, n in zip(leaves, to_arrays(model), strict=True)]
                model = jax.tree.unflatten(shape, moved)
        for name, array in to_arrays(model).items():
            np.testing.assert_allclose(found.model[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
        assert (found.control is None) == (control is None)
        for name, array in (found.control or {}).items():
            np.testing.assert_allclose(array, mean[name], rtol=1e-4, atol=1e-5, err_msg=name)
