from __future__ import annotations

import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from broker_fl.errors import SettingError, TaskCancelled
from broker_fl.frameworks import LocalTask
from broker_fl.frameworks.keras import KerasLearner, load_arrays, to_arrays
from broker_fl.interfaces import Learner
from broker_fl.model import Model, ModelError
from tests.unit.frameworks.recording import Recording

NUM = 130


def network(**compile_options: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((6,)),
            *(layers.Dense(16), layers.BatchNormalization(momentum=0.9), layers.ReLU(), layers.Dropout(0.2)),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9), "loss": loss, "metrics": ["accuracy"]}
    model.compile(**options | compile_options)
    return model


def examples(num: int = NUM) -> tuple[Any, Any]:
    inputs = np.random.default_rng(1).standard_normal((num, 6)).astype(np.float32)
    return inputs, inputs[:, :3].argmax(axis=1)


@pytest.fixture(scope="module")
def site() -> KerasLearner:
    """One for many tests: it remembers nothing of a task, and its first one takes seconds to compile."""
    return KerasLearner(network(), examples())


@pytest.fixture(scope="module")
def start(site: KerasLearner) -> Model:
    return Model.of(site.initial_model())


def test_names_are_the_same_for_every_model_built_from_one_recipe() -> None:
    first, second = network(), network()
    names = list(to_arrays(first))
    assert names == list(to_arrays(second))
    assert names[0] == "sequential/dense/kernel"
    assert names[-1] == "sequential/dense_1/bias"
    assert len(names) == len(first.weights) == 8


def test_every_weight_travels_and_comes_back_bit_by_bit() -> None:
    sent, received = network(), network()
    sent(examples()[0], training=True)
    sent.weights[0].assign(sent.weights[0] + 1)
    arrays = Model.of(to_arrays(sent))
    load_arrays(received, arrays)
    assert arrays["sequential/batch_normalization/moving_mean"].any()
    for mine, theirs in zip(sent.weights, received.weights, strict=True):
        assert np.array_equal(mine.numpy(), theirs.numpy())


def test_bfloat16_weights_travel_as_they_are() -> None:
    def half() -> keras.Model:
        return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])

    sent, received = half(), half()
    arrays = Model.of(to_arrays(sent))
    assert {str(array.dtype) for array in arrays.values()} == {"bfloat16"}
    load_arrays(received, arrays)
    assert Model.of(to_arrays(received)).digest == arrays.digest


def test_a_shared_layer_is_carried_once() -> None:
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4)
    assert len(to_arrays(keras.Model(inputs, shared(shared(inputs))))) == 2


def test_a_model_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = network()
    before = Model.of(to_arrays(model)).digest
    arrays = dict(Model.of(to_arrays(network())))
    arrays["sequential/dense/bias"] = np.zeros(3, np.float32)
    with pytest.raises(ModelError, match=r"does not fit this Keras model: .*dense/bias' has shape \(3,\)"):
        load_arrays(model, arrays)
    assert Model.of(to_arrays(model)).digest == before


def test_training_learns_and_evaluation_says_so(site: KerasLearner, start: Model) -> None:
    before = site.evaluate(start.copy(), LocalTask())
    update = site.train(start.copy(), LocalTask(parameters={"epochs": 30, "seed": 0}))
    after = site.evaluate(update.model, LocalTask())
    assert isinstance(site, Learner)
    assert before["num_examples"] == NUM
    assert before["accuracy"] < 0.6 < 0.85 < after["accuracy"]
    assert set(update.metrics) == {"loss", "accuracy"}
    assert (update.num_examples, update.num_steps, update.num_epochs) == (NUM, 30 * 5, 30)


def test_the_result_is_in_the_arrays_that_came(site: KerasLearner, start: Model) -> None:
    model = start.copy()
    update = site.train(dict(model), LocalTask())
    assert Model.of(update.model).buffer is model.buffer
    assert model.digest != start.digest


def test_the_seed_decides_the_result_also_on_several_threads() -> None:
    sites = [KerasLearner(network(), examples()) for _ in range(2)]
    start, digests = Model.of(sites[0].initial_model()), dict[tuple[int, int], str]()

    def train(index: int) -> None:
        for seed in (1, 2):
            task = LocalTask(parameters={"epochs": 2, "seed": seed})
            digests[index, seed] = Model.of(sites[index].train(start.copy(), task).model).digest

    threads = [threading.Thread(target=train, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests[0, 1] == digests[1, 1] != digests[0, 2] == digests[1, 2]


def test_steps_end_training_in_the_middle_of_an_epoch_and_beyond_one(
    site: KerasLearner, start: Model
) -> None:
    update = site.train(start.copy(), LocalTask(parameters={"steps": 3, "batch_size": 10, "epochs": 9}))
    assert (update.num_steps, update.num_examples, update.num_epochs) == (3, 30, 3 / 13)
    update = site.train(start.copy(), LocalTask(parameters={"steps": 20, "batch_size": 10}))
    assert (update.num_steps, update.num_examples, update.num_epochs) == (20, NUM, 1 + 7 / 13)
    update = site.train(start.copy(), LocalTask(parameters={"steps": 6, "batch_size": 32}))
    assert (update.num_steps, update.num_epochs) == (6, 1 + 32 / NUM)  # the fifth batch has 2 examples


def test_a_step_of_an_optimizer_that_gathers_gradients_is_several_batches() -> None:
    site = KerasLearner(
        network(optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)), examples()
    )
    task = Recording(parameters={"steps": 3, "batch_size": 10})
    update = site.train(site.initial_model(), task)
    assert (update.num_steps, update.num_examples, update.num_epochs) == (3, 120, 12 / 13)
    assert task.told == [batch / 12 for batch in range(1, 13)]
    several = KerasLearner(network(steps_per_execution=2), examples())
    with pytest.raises(
        SettingError, match=r"asks for steps 3, but .* steps_per_execution=2, so that it cannot"
    ):
        several.train(several.initial_model(), LocalTask(parameters={"steps": 3}))
    assert several.train(several.initial_model(), LocalTask(parameters={"epochs": 2})).num_steps == 10


def test_optimizer_state_and_learning_rate_are_not_kept_from_task_to_task(
    site: KerasLearner, start: Model
) -> None:
    def digest(**parameters: float) -> str:
        return Model.of(
            site.train(start.copy(), LocalTask(parameters={"seed": 0, **parameters})).model
        ).digest

    first = digest()
    assert digest(learning_rate=0.5) != first
    assert digest() == first


def test_progress_is_told_after_each_step(site: KerasLearner, start: Model) -> None:
    training, evaluation = Recording(parameters={"epochs": 2}), Recording()
    site.train(start.copy(), training)
    site.evaluate(start.copy(), evaluation)
    assert training.told == [step / 10 for step in range(1, 11)]
    assert evaluation.told == [step / 5 for step in range(1, 6)]


def test_a_task_is_cancelled_between_two_steps_and_the_learner_works_on(
    site: KerasLearner, start: Model
) -> None:
    task = Recording(cancel_after=3, parameters={"epochs": 50})
    with pytest.raises(TaskCancelled):
        site.train(start.copy(), task)
    assert len(task.told) == 3
    assert site.train(start.copy(), LocalTask()).num_steps == 5


def test_a_tensorflow_dataset_is_used_as_it_is() -> None:
    data = tf.data.Dataset.from_tensor_slices(examples(60)).batch(20)
    site = KerasLearner(network(), data)
    update = site.train(site.initial_model(), LocalTask(parameters={"epochs": 2}))
    assert (update.num_examples, update.num_steps, update.num_epochs) == (60, 6, 2)
    update = site.train(site.initial_model(), LocalTask(parameters={"steps": 4}))
    assert (update.num_examples, update.num_steps, update.num_epochs) == (60, 4, 1 + 1 / 3)
    update = site.train(site.initial_model(), LocalTask(parameters={"steps": 2}))
    assert (update.num_examples, update.num_epochs) == (40, 2 / 3)
    assert site.evaluate(update.model, LocalTask())["num_examples"] == 60
    with pytest.raises(
        SettingError, match="asks for batch_size 7, but train_data comes in batches of its own"
    ):
        site.train(site.initial_model(), LocalTask(parameters={"batch_size": 7}))


def test_wrong_settings_are_named() -> None:
    layers = [keras.layers.Dense(2)]
    with pytest.raises(SettingError, match=r"not compiled: call model\.compile"):
        KerasLearner(keras.Sequential([keras.layers.Input((2,)), *layers]), examples())
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    unbuilt.compile(loss="mse")
    with pytest.raises(ModelError, match="no weights yet: give it an Input"):
        KerasLearner(unbuilt, examples())
    with pytest.raises(SettingError, match="train_data is empty"):
        KerasLearner(network(), examples(0))
    with pytest.raises(SettingError, match="train_data has 3 parts"):
        KerasLearner(network(), (*examples(), None))
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    scheduled = KerasLearner(network(optimizer=keras.optimizers.SGD(schedule)), examples())
    with pytest.raises(SettingError, match=r"learning_rate 0\.5, but the model is compiled with a schedule"):
        scheduled.train(scheduled.initial_model(), LocalTask(parameters={"learning_rate": 0.5}))


def linear() -> keras.Model:
    keras.utils.set_random_seed(0)
    own = keras.regularizers.L2(0.01)
    model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(1, kernel_regularizer=own)])
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    return model


def test_the_proximal_term_is_that_of_fedprox_against_the_model_that_was_received() -> None:
    """Full batches, plain SGD, a linear model, beside its gradient by hand; a task without it between."""
    inputs, classes = examples(64)
    targets = classes.astype(np.float32)[:, None]
    site = KerasLearner(linear(), (inputs, targets))
    received = Model.of(site.initial_model())
    received["sequential/dense/kernel"][...] += 1
    for mu in (0.7, 0.0, 0.2):
        parameters = {"steps": 5, "batch_size": 64, "proximal_mu": mu}
        found = site.train(received.copy(), LocalTask(parameters=parameters))
        w, b = (received[f"sequential/dense/{name}"].astype(np.float64) for name in ("kernel", "bias"))
        w0, b0 = w, b
        for _ in range(5):
            error = inputs @ w + b - targets
            w_gradient = 2 * inputs.T @ error / 64 + 0.02 * w + mu * (w - w0)
            b_gradient = 2 * error.mean(0) + mu * (b - b0)
            w, b = w - 0.05 * w_gradient, b - 0.05 * b_gradient
        np.testing.assert_allclose(found.model["sequential/dense/kernel"], w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.model["sequential/dense/bias"], b, rtol=1e-4, atol=1e-5)


def test_the_loss_of_an_evaluation_is_without_the_proximal_term() -> None:
    inputs, classes = examples(64)
    data = (inputs, classes.astype(np.float32)[:, None])
    plain, held = KerasLearner(linear(), data), KerasLearner(linear(), data)
    model = Model.of(plain.initial_model())
    held.train(model.copy(), LocalTask(parameters={"steps": 3, "proximal_mu": 5.0}))
    assert held.evaluate(model, LocalTask()) == pytest.approx(plain.evaluate(model, LocalTask()), rel=1e-6)


def test_scaffold_corrects_each_gradient_and_gives_the_mean_of_those_before() -> None:
    """Full batches, plain SGD, a linear model, beside its gradient by hand; a task without it between."""
    inputs, classes = examples(64)
    targets = classes.astype(np.float32)[:, None]
    site, num_steps, rng = KerasLearner(linear(), (inputs, targets)), 5, np.random.default_rng(0)
    received = Model.of(site.initial_model())
    for strength in (1.0, None, 0.5):
        control = None
        if strength is not None:
            control = {n: (strength * rng.normal(size=a.shape)).astype("f4") for n, a in received.items()}
        task = LocalTask(parameters={"steps": num_steps, "batch_size": 64}, control=control)
        found = site.train(received.copy(), task)
        w, b = (received[f"sequential/dense/{name}"].astype(np.float64) for name in ("kernel", "bias"))
        mean_w, mean_b = np.zeros_like(w), np.zeros_like(b)
        for _ in range(num_steps):
            error = inputs @ w + b - targets
            w_gradient, b_gradient = 2 * inputs.T @ error / 64 + 0.02 * w, 2 * error.mean(0)
            mean_w, mean_b = mean_w + w_gradient / num_steps, mean_b + b_gradient / num_steps
            if control is not None:
                w_gradient = w_gradient + control["sequential/dense/kernel"]
                b_gradient = b_gradient + control["sequential/dense/bias"]
            w, b = w - 0.05 * w_gradient, b - 0.05 * b_gradient
        np.testing.assert_allclose(found.model["sequential/dense/kernel"], w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.model["sequential/dense/bias"], b, rtol=1e-4, atol=1e-5)
        assert (found.control is None) == (control is None)
        if found.control is not None:
            np.testing.assert_allclose(found.control["sequential/dense/kernel"], mean_w, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found.control["sequential/dense/bias"], mean_b, rtol=1e-4, atol=1e-5)
