"""PyTorch: a learner made of an ``nn.Module`` and data; the two conversions, for those who write their own.

A model here is the module's ``state_dict``: parameters and persistent buffers, so that the running statistics
of batch normalisation travel with the weights. Tensors that share their memory (tied weights) are carried
once, under the first of their names.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from broker_fl.errors import SettingError
from broker_fl.frameworks.fit import fitting
from broker_fl.frameworks.workload import Workload
from broker_fl.interfaces import Metrics, TaskContext, Update
from broker_fl.model import Array, Arrays, ModelError, ModelSpec

try:
    import torch
except ModuleNotFoundError as error:
    raise SettingError("PyTorch is not installed: pip install 'broker-fl[torch]'") from error

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils.data import DataLoader, Dataset, IterableDataset

Data = DataLoader[Any] | Dataset[Any]
Loss = Callable[[Any, Any], Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

DEFAULT_BATCH_SIZE = 32
DEFAULT_OPTIMIZER = partial(torch.optim.SGD, lr=0.01)


# ---------------------------------------------------------------- conversions


def to_arrays(module: nn.Module, out: Arrays | None = None) -> dict[str, Array]:
    """Every tensor of ``module`` by its name in ``state_dict``.

    Without ``out``, tensors on the CPU are not copied: the arrays are views that change when the module
    trains on. With it, values are written into those arrays, and they are what is returned.

    Raises:
        ModelError: a tensor has no place in a model: no shape yet, sparse, or of an unknown element type.
    """
    arrays = {name: _as_array(name, tensor) for name, tensor in _tensors(module).items()}
    if out is None:
        return arrays
    for name, array in arrays.items():
        np.copyto(out[name], array, casting="no")
    return dict(out)


def load_arrays(module: nn.Module, arrays: Arrays) -> None:
    """Copy ``arrays`` into the tensors of ``module``, where they are.

    Raises:
        ModelError: names, shapes or element types are not those of the module; nothing was changed.
    """
    tensors = _tensors(module)
    expected = ModelSpec.of({name: _like(name, tensor) for name, tensor in tensors.items()})
    given = fitting(arrays, expected, "module")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(_as_tensor(given[name]))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name!r} of the module is a {type(value).__name__}, not a tensor; it cannot travel"
            )
        if isinstance(value, UninitializedParameter | UninitializedBuffer):
            raise ModelError(f"tensor {name!r} has no shape yet: put one batch through the module first")
        if value.layout != torch.strided or value.is_quantized:
            raise ModelError(f"tensor {name!r} is sparse or quantised; only dense tensors can travel")
        place = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride())
        if value.numel() and place in seen:
            continue
        seen.add(place)
        found[name] = value
    return found


def _as_array(name: str, tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.numpy()
    except TypeError as error:
        raise ModelError(f"tensor {name!r}: element type {tensor.dtype} is unknown to numpy") from error


def _like(name: str, tensor: Tensor) -> Array:
    """An array of the tensor's shape and type that takes no memory, wherever the tensor is."""
    return np.broadcast_to(_as_array(name, torch.empty((), dtype=tensor.dtype)), tuple(tensor.shape))


def _as_tensor(array: Array) -> Tensor:
    if not (array.flags.writeable and array.flags.c_contiguous):  # torch takes no others without a warning
        array = array.copy()
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


# ---------------------------------------------------------------- the learner


class TorchLearner:
    """Trains an ``nn.Module`` with plain mini-batch steps.

    The job's parameters ``epochs``, ``steps``, ``batch_size``, ``learning_rate``, ``seed`` and, for FedProx,
    ``proximal_mu`` are read where they are given; SCAFFOLD's control variates are kept. The optimizer is made
    anew for each task: its state neither travels nor stays.
    """

    def __init__(
        self,
        module: nn.Module,
        train_data: Data,
        test_data: Data | None = None,
        *,
        loss: Loss = nn.functional.cross_entropy,
        optimizer: OptimizerFactory = DEFAULT_OPTIMIZER,
        device: str = "cpu",
    ) -> None:
        """Take over ``module``, which no other learner may share.

        Args:
            module: called as ``module(inputs)``; its tensors of this moment are the ``initial_model``.
            train_data: pairs of inputs and targets. A ``DataLoader`` is used as it is; a ``Dataset`` is
                shuffled and cut into batches of the job's ``batch_size``, or of 32.
            test_data: what ``evaluate`` uses; without it, the training data.
            loss: of outputs and targets, its mean over the batch.
            optimizer: called with the parameters that are to be trained.
            device: ``"auto"`` takes a GPU where there is one.

        Raises:
            SettingError: there are no data, or no such device.
        """
        self._device = _device(device)
        self._module = module.to(self._device)
        self._train_data = _not_empty("train_data", train_data)
        self._test_data = self._train_data if test_data is None else _not_empty("test_data", test_data)
        self._loss = loss
        self._optimizer = optimizer

    def initial_model(self) -> dict[str, Array]:
        """A copy of the module's tensors."""
        return {name: array.copy() for name, array in to_arrays(self._module).items()}

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Train from ``model``; the result is written into the arrays that came, which saves a copy."""
        work = Workload.of(task)
        if work.seed is not None:
            torch.manual_seed(work.seed)
        batches = self._training_batches(work)
        load_arrays(self._module, model)
        optimizer = self._make_optimizer(work)
        proximal = _Proximal(self._module, work.proximal_mu)
        control = _Control(self._module, task.control)
        self._module.train()
        totals = _Totals()
        for epoch, batch in _schedule(batches, work, task):
            inputs, targets = _to(batch, self._device)
            optimizer.zero_grad()
            outputs = self._module(inputs)
            loss = self._loss(outputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            control.correct_gradients()
            proximal.add_gradients()
            optimizer.step()
            totals.add(epoch, outputs, targets, loss)
        return Update(
            model=to_arrays(self._module, out=model),
            num_examples=max(totals.examples.values()),
            num_steps=totals.batches,
            num_epochs=_num_epochs(totals, batches, work),
            metrics=totals.metrics(),
            control=control.result(),
        )

    @torch.inference_mode()
    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """Loss, and accuracy if the targets are classes."""
        load_arrays(self._module, model)
        self._module.eval()
        totals = _Totals()
        batch_size = Workload.of(task).batch_size or DEFAULT_BATCH_SIZE
        batches = _loader(self._test_data, batch_size)
        for epoch, batch in _schedule(batches, Workload(), task):
            inputs, targets = _to(batch, self._device)
            outputs = self._module(inputs)
            totals.add(epoch, outputs, targets, self._loss(outputs, targets))
        return {**totals.metrics(), "num_examples": totals.examples[0]}

    def _training_batches(self, work: Workload) -> DataLoader[Any]:
        data, size = self._train_data, work.batch_size or DEFAULT_BATCH_SIZE
        if isinstance(data, DataLoader):
            if work.batch_size not in (None, data.batch_size):
                raise SettingError(
                    f"the job asks for batch_size {work.batch_size}, but train_data is a DataLoader with "
                    f"{data.batch_size}: give the learner the Dataset, or leave batch_size out of the job"
                )
            return data
        if isinstance(data, IterableDataset):
            return _loader(data, size)
        # Batch normalisation cannot train on a batch of one; small, uneven parts leave such a rest often.
        lone_rest = len(data) > size and len(data) % size == 1  # type: ignore[arg-type]
        drop_last = lone_rest and any(isinstance(m, _BatchNorm) for m in self._module.modules())
        generator = None if work.seed is None else torch.Generator().manual_seed(work.seed)
        return DataLoader(data, size, shuffle=True, drop_last=drop_last, generator=generator)

    def _make_optimizer(self, work: Workload) -> torch.optim.Optimizer:
        optimizer = self._optimizer([p for p in self._module.parameters() if p.requires_grad])
        if work.learning_rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = work.learning_rate
        return optimizer


class _Proximal:
    """FedProx: the gradient of ``μ/2 ‖w − w_t‖²``, of the parameters that are trained; buffers have none.

    The metric ``loss`` is without the term, so that it can be compared with that of other rules.
    """

    def __init__(self, module: nn.Module, mu: float) -> None:
        self._mu = mu
        trained = [p for p in module.parameters() if p.requires_grad] if mu else []
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in trained]

    @torch.no_grad()
    def add_gradients(self) -> None:
        for parameter, received in self._pairs:
            if parameter.grad is not None:  # without one the parameter stays where it is
                parameter.grad.add_(parameter - received, alpha=self._mu)


class _Control:
    """SCAFFOLD's ``c − c_k``, added to the gradients of what is trained; see ``control.py``."""

    def __init__(self, module: nn.Module, correction: Arrays | None) -> None:
        self._correction = correction
        self._num_steps = 0
        self._terms = [
            (name, parameter, term, torch.zeros_like(term))
            for name, parameter in module.named_parameters()
            if correction is not None and parameter.requires_grad
            for term in [_as_tensor(np.asarray(correction[name])).to(parameter.device)]
        ]

    @torch.no_grad()
    def correct_gradients(self) -> None:
        self._num_steps += 1
        for _, parameter, term, total in self._terms:
            if parameter.grad is not None:  # without one the parameter stays where it is
                total.add_(parameter.grad)
                parameter.grad.add_(term.to(parameter.grad.dtype))

    def result(self) -> dict[str, Array] | None:
        if self._correction is None:
            return None
        return {name: (total / self._num_steps).cpu().numpy() for name, _, _, total in self._terms}


class _Totals:
    """Sums over batches; they stay on the device until the end, since each look at them would wait for it."""

    def __init__(self) -> None:
        self.examples: Counter[int] = Counter()  # by epoch
        self.batches = 0
        self._loss: Tensor | float = 0.0
        self._correct: Tensor | float = 0.0
        self._guesses = 0

    def add(self, epoch: int, outputs: Any, targets: Any, loss: Tensor) -> None:
        size = _batch_size(targets)
        self.examples[epoch] += size
        self.batches += 1
        self._loss = self._loss + loss.detach().float() * size
        if _are_classes(outputs, targets):
            self._correct = self._correct + (outputs.detach().argmax(1) == targets).sum()
            self._guesses += targets.numel()

    def metrics(self) -> dict[str, float]:
        found = {"loss": float(self._loss) / self.examples.total()}
        if self._guesses:
            found["accuracy"] = float(self._correct) / self._guesses
        return found


def _schedule(batches: DataLoader[Any], work: Workload, task: TaskContext) -> Iterator[tuple[int, Any]]:
    """Batches with the number of their epoch, for as long as the work lasts; tells the task after each."""
    try:
        total = work.steps or work.epochs * len(batches)
    except TypeError:  # a stream, whose end shows when it comes
        total = None
    step = 0
    for epoch in itertools.count() if work.steps else range(work.epochs):
        for batch in batches:
            yield epoch, batch
            step += 1
            task.progress(min(1.0, step / total) if total else epoch / work.epochs)
            if step == work.steps:
                return
        if step == 0:
            raise SettingError("the data gave no batch")


def _num_epochs(totals: _Totals, batches: DataLoader[Any], work: Workload) -> float:
    """Passes over the data; one that the step limit ended counts by its examples."""
    if not work.steps:
        return float(len(totals.examples))
    *whole, last = totals.examples.values()
    if whole:
        return len(whole) + min(1.0, last / whole[0])
    return _part_of_first_pass(totals, batches)


def _part_of_first_pass(totals: _Totals, batches: DataLoader[Any]) -> float:
    """0 of a stream, of which nobody knows how long it is."""
    try:
        num_batches = len(batches)
    except TypeError:
        return 0.0
    if batches.batch_size is None or not isinstance(batches.sampler, Sized):
        return totals.batches / num_batches
    return totals.examples[0] / min(len(batches.sampler), num_batches * batches.batch_size)


def _are_classes(outputs: Any, targets: Any) -> bool:
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.is_floating_point():
        return False
    return outputs.ndim == targets.ndim + 1 and outputs[:, 0].shape == targets.shape


def _batch_size(batch: Any) -> int:
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [_to(value, device) for value in batch]
    return batch


def _loader(data: Data, batch_size: int) -> DataLoader[Any]:
    return data if isinstance(data, DataLoader) else DataLoader(data, batch_size)


def _not_empty(name: str, data: Data) -> Data:
    with suppress(TypeError):  # streams have no length
        if len(data) == 0:  # type: ignore[arg-type]
            raise SettingError(f"{name} is empty")
    return data


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter: a build without CUDA
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"device {name!r} cannot be used ({reason}); 'auto' takes what there is"
        ) from error
