from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from broker_fl.errors import SettingError, TaskCancelled
from broker_fl.frameworks import LocalTask
from broker_fl.frameworks.torch import TorchLearner, load_arrays, to_arrays
from broker_fl.interfaces import Learner
from broker_fl.model import Model, ModelError
from tests.unit.frameworks.recording import Recording

torch.set_num_threads(1)  # threads that wait for one another by spinning take seconds on a busy machine
NUM = 129  # a batch of 32 leaves a rest of one, which batch normalisation cannot train on


def network(*, seed: int = 0, dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
    )


def examples(num: int = NUM) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num, 6, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def learner(**options: object) -> TorchLearner:
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9)} | options
    return TorchLearner(network(), examples(), **options)  # type: ignore[arg-type]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False]))


def test_every_tensor_travels_and_comes_back_bit_by_bit() -> None:
    sent, received = network(seed=1), network(seed=2)
    sent(torch.randn(8, 6))
    arrays = Model.of(to_arrays(sent))
    load_arrays(received, arrays)
    assert list(arrays) == list(sent.state_dict())
    assert arrays["1.num_batches_tracked"].dtype == np.int64
    assert arrays["1.num_batches_tracked"] == 1
    assert arrays["1.running_mean"].any()
    for name, tensor in sent.state_dict().items():
        assert torch.equal(tensor, received.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_element_types_travel_as_they_are(dtype: torch.dtype) -> None:
    sent, received = network(seed=1).to(dtype), network(seed=2).to(dtype)
    arrays = Model.of(to_arrays(sent))
    assert str(arrays["0.weight"].dtype) == str(dtype).removeprefix("torch.")
    load_arrays(received, arrays)
    assert torch.equal(sent[0].weight, received[0].weight)  # type: ignore[index]


def test_tied_weights_are_carried_once_and_stay_tied() -> None:
    module = Tied()
    arrays = {name: array.copy() for name, array in to_arrays(module).items()}
    assert list(arrays) == ["mask", "a.weight", "a.bias", "b.bias"]
    load_arrays(module, {**arrays, "a.weight": np.full((3, 3), 7, np.float32)})
    assert module.b.weight is module.a.weight
    assert (module.b.weight == 7).all()


def test_arrays_are_views_of_a_module_on_the_cpu() -> None:
    module = network()
    arrays = to_arrays(module)
    with torch.no_grad():
        module[0].weight.fill_(3)  # type: ignore[index]
    assert (arrays["0.weight"] == 3).all()


def test_scalars_that_arithmetic_made_and_arrays_that_are_read_only_can_be_loaded() -> None:
    module = network()
    arrays = {name: array + array.dtype.type(1) for name, array in to_arrays(module).items()}
    arrays["0.weight"].flags.writeable = False
    load_arrays(module, arrays)
    assert module[1].num_batches_tracked == 1  # type: ignore[index]


def test_a_model_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    module = network()
    before = Model.of(to_arrays(module)).digest
    arrays = dict(Model.of(to_arrays(network(seed=5))))
    arrays["0.bias"] = np.zeros(3, np.float32)
    arrays["4.bias"] = arrays["4.bias"].astype(np.float64)
    arrays["new"] = arrays.pop("1.bias")
    with pytest.raises(ModelError) as caught:
        load_arrays(module, arrays)
    for part in (
        "'0.bias' has shape (3,)",
        "'4.bias' has element type float64",
        "'1.bias' is missing",
        "'new' is not",
    ):
        assert part in str(caught.value)
    assert Model.of(to_arrays(module)).digest == before


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(ModelError, match="'weight' has no shape yet"):
        to_arrays(nn.LazyLinear(3))
    with pytest.raises(ModelError, match=r"'0\.weight': element type torch.float8_e4m3fn is unknown"):
        to_arrays(nn.Sequential(nn.Linear(2, 2).to(torch.float8_e4m3fn)))


def test_training_learns_and_evaluation_says_so() -> None:
    site: Learner = learner()
    model = Model.of(learner().initial_model())
    before = site.evaluate(model, LocalTask())
    update = site.train(model, LocalTask(parameters={"epochs": 12, "seed": 0}))
    after = site.evaluate(update.model, LocalTask())
    assert before["num_examples"] == NUM
    assert before["accuracy"] < 0.6 < 0.9 < after["accuracy"]
    assert after["loss"] < before["loss"]
    assert set(update.metrics) == {"loss", "accuracy"}
    assert (update.num_examples, update.num_steps, update.num_epochs) == (NUM - 1, 12 * 4, 12)


def test_evaluation_changes_neither_the_model_nor_the_running_statistics() -> None:
    model = Model.of(learner().initial_model())
    before = model.digest
    site = learner()
    site.evaluate(model, LocalTask())
    assert model.digest == before == Model.of(site.initial_model()).digest


def test_the_result_is_in_the_arrays_that_came_and_nowhere_tied_to_the_module() -> None:
    site = learner()
    model = Model.of(site.initial_model())
    update = site.train(dict(model), LocalTask())
    assert Model.of(update.model).buffer is model.buffer
    digest = model.digest
    site.train(site.initial_model(), LocalTask())
    assert model.digest == digest


def test_the_seed_decides_the_result() -> None:
    def digest(seed: int, learner_id: str = "a") -> str:
        site = learner()
        task = LocalTask(learner=learner_id, parameters={"epochs": 2, "seed": seed})
        return Model.of(site.train(site.initial_model(), task).model).digest

    assert digest(1) == digest(1)
    assert len({digest(1), digest(2), digest(1, "b")}) == 3


def test_optimizer_state_is_not_kept_from_task_to_task() -> None:
    site, start = learner(), learner().initial_model()
    results = [
        site.train({name: array.copy() for name, array in start.items()}, LocalTask(parameters={"seed": 0}))
        for _ in range(2)
    ]
    assert Model.of(results[0].model).digest == Model.of(results[1].model).digest


def test_steps_end_training_in_the_middle_of_an_epoch_and_beyond_one() -> None:
    site = learner()
    parameters = {"steps": 3, "batch_size": 10, "epochs": 9}
    update = site.train(site.initial_model(), LocalTask(parameters=parameters))
    assert (update.num_steps, update.num_examples, update.num_epochs) == (3, 30, 30 / NUM)
    update = site.train(site.initial_model(), LocalTask(parameters={**parameters, "steps": 20}))
    assert (update.num_steps, update.num_examples, update.num_epochs) == (20, NUM, 1 + 70 / NUM)
    update = site.train(site.initial_model(), LocalTask(parameters={**parameters, "steps": 26}))
    assert (update.num_steps, update.num_epochs) == (26, 2)


def test_the_learning_rate_is_the_jobs() -> None:
    rates = []

    def optimizer(parameters: object) -> torch.optim.Optimizer:
        made = torch.optim.Adam(parameters)  # type: ignore[arg-type]
        rates.append(made.param_groups)
        return made

    site = learner(optimizer=optimizer)
    site.train(site.initial_model(), LocalTask(parameters={"learning_rate": 0.25}))
    assert rates[0][0]["lr"] == 0.25


def test_frozen_parameters_stay() -> None:
    module = network()
    module[0].requires_grad_(False)  # type: ignore[index]
    site = TorchLearner(module, examples())
    start = site.initial_model()
    after = site.train({name: array.copy() for name, array in start.items()}, LocalTask()).model
    assert np.array_equal(after["0.weight"], start["0.weight"])
    assert not np.array_equal(after["4.weight"], start["4.weight"])


def test_progress_is_told_after_each_step() -> None:
    site, task = learner(), Recording(parameters={"epochs": 2})
    site.train(site.initial_model(), task)
    assert task.told == [step / 8 for step in range(1, 9)]


def test_a_task_is_cancelled_between_two_steps_and_the_learner_works_on() -> None:
    site, task = learner(), Recording(cancel_after=3, parameters={"epochs": 50})
    with pytest.raises(TaskCancelled):
        site.train(site.initial_model(), task)
    assert len(task.told) == 3
    assert site.train(site.initial_model(), LocalTask()).num_steps == 4


def test_a_data_loader_is_used_as_it_is() -> None:
    site = TorchLearner(network(), DataLoader(examples(60), batch_size=20), examples(10))
    assert site.train(site.initial_model(), LocalTask(parameters={"batch_size": 20})).num_steps == 3
    assert site.train(site.initial_model(), LocalTask(parameters={"steps": 2})).num_epochs == 2 / 3
    assert site.evaluate(site.initial_model(), LocalTask())["num_examples"] == 10
    with pytest.raises(SettingError, match="asks for batch_size 7, but train_data is a DataLoader with 20"):
        site.train(site.initial_model(), LocalTask(parameters={"batch_size": 7}))


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(examples(40))


def test_a_stream_of_examples_can_be_trained_on() -> None:
    site, task = TorchLearner(network(), Stream()), Recording(parameters={"epochs": 2, "batch_size": 10})
    update = site.train(site.initial_model(), task)
    assert (update.num_examples, update.num_steps, update.num_epochs) == (40, 8, 2)
    assert task.told == sorted(task.told)


def test_passes_are_counted_as_far_as_anybody_knows_how_long_one_is() -> None:
    def num_epochs(data: DataLoader[object] | Stream, steps: int) -> float:
        site = TorchLearner(network(), data)
        task = LocalTask(parameters={"steps": steps, "batch_size": None})
        return site.train(site.initial_model(), task).num_epochs

    assert num_epochs(Stream(), 1) == 0
    assert num_epochs(Stream(), 3) == 1.8  # batches of 32 and 8, and again 32
    uneven = [list(range(20)), list(range(20, 50)), list(range(50, 60))]
    assert num_epochs(DataLoader(examples(60), batch_sampler=uneven), 2) == 2 / 3
    assert num_epochs(DataLoader(examples(60), batch_sampler=uneven), 4) == 1 + 20 / 60
    assert num_epochs(DataLoader(examples(50), batch_size=20, drop_last=True), 1) == 0.5


def test_regression_has_a_loss_and_no_accuracy() -> None:
    data = TensorDataset(torch.randn(20, 6), torch.randn(20, 3))
    site = TorchLearner(network(), data, loss=nn.functional.mse_loss)
    assert set(site.train(site.initial_model(), LocalTask()).metrics) == {"loss"}
    assert set(site.evaluate(site.initial_model(), LocalTask())) == {"loss", "num_examples"}


def test_wrong_settings_are_named() -> None:
    with pytest.raises(SettingError, match="train_data is empty"):
        TorchLearner(network(), examples(0))
    with pytest.raises(SettingError, match="device 'nonsense' cannot be used"):
        learner(device="nonsense")
    learner(device="auto")


def test_the_proximal_term_is_that_of_fedprox_against_the_model_that_was_received() -> None:
    """Full batches and plain SGD, beside a loop whose loss has the term in it."""
    data, mu = examples(64), 0.7
    site = TorchLearner(network(dropout=0.0), data, optimizer=partial(torch.optim.SGD, lr=0.1))
    received = Model.of(to_arrays(network(seed=3))).copy()
    parameters = {"steps": 5, "batch_size": 64, "seed": 1, "proximal_mu": mu}
    found = site.train(received.copy(), LocalTask(parameters=parameters))

    module = network(dropout=0.0)
    load_arrays(module, received)
    start = [p.detach().clone() for p in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(data.tensors[0]), data.tensors[1])
        away = sum(((p - w) ** 2).sum() for p, w in zip(module.parameters(), start, strict=True))
        (loss + mu / 2 * away).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, array in to_arrays(module).items():
        np.testing.assert_allclose(found.model[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_strong_proximal_term_holds_the_model_and_none_changes_no_bit() -> None:
    received = Model.of(learner().initial_model())

    def trained(**parameters: float) -> Model:
        task = LocalTask(parameters={"epochs": 3, "seed": 0, **parameters})
        return Model.of(learner().train(received.copy(), task).model)

    plain, zero, held = trained(), trained(proximal_mu=0.0), trained(proximal_mu=3.0)
    assert plain.digest == zero.digest
    moved = [np.linalg.norm(model["0.weight"] - received["0.weight"]) for model in (plain, held)]
    assert moved[1] < moved[0] / 2


def test_scaffold_corrects_each_gradient_and_gives_the_mean_of_those_before() -> None:
    """Beside a loop by hand; of buffers and of tied weights under their other name there is no gradient."""
    data, num_steps = examples(64), 4
    site = TorchLearner(network(dropout=0.0), data, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.5))
    received, rng = Model.of(to_arrays(network(seed=3))).copy(), np.random.default_rng(0)
    correction = {
        n: rng.normal(size=a.shape).astype("f4") for n, a in received.items() if a.dtype.kind == "f"
    }
    task = LocalTask(parameters={"steps": num_steps, "batch_size": 64, "seed": 1}, control=correction)
    found = site.train(received.copy(), task)

    module = network(dropout=0.0)
    load_arrays(module, received)
    trained = dict(module.named_parameters())
    mean = {name: np.zeros(parameter.shape) for name, parameter in trained.items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.5)
    module.train()
    for _ in range(num_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(data.tensors[0]), data.tensors[1]).backward()  # type: ignore[no-untyped-call]
        for name, parameter in trained.items():
            assert parameter.grad is not None
            mean[name] += parameter.grad.numpy() / num_steps
            parameter.grad += torch.from_numpy(correction[name])
        optimizer.step()
    for name, array in to_arrays(module).items():
        np.testing.assert_allclose(found.model[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    assert found.control is not None
    assert found.control.keys() == mean.keys()
    for name, array in mean.items():
        np.testing.assert_allclose(found.control[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    assert site.train(received.copy(), LocalTask(parameters={"steps": 1})).control is None
