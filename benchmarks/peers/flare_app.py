"""What NVIDIA FLARE's processes load by name: the controller that notes rounds, and the client's work."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.fedavg import FedAvg

from benchmarks.peers.rounds import (
    Enough,
    RoundClock,
    add_constant,
    check_weights,
    constant_of,
    initial_weights,
)


class TimedFedAvg(FedAvg):  # type: ignore[misc,unused-ignore]
    """FLARE's FedAvg, which sums updates as they come; the end of each round is noted instead of written."""

    def __init__(
        self, num_parameters: int, began_s: float, limit_s: float, least: int, result: str, **settings: Any
    ) -> None:
        super().__init__(model=FLModel(params=initial_weights(num_parameters)), persistor_id="", **settings)
        self._clock = RoundClock(began_s, limit_s, least)
        self._result = Path(result)
        self._newest: Any = None

    def run(self) -> None:
        """All rounds, and the result."""
        with suppress(Enough):
            super().run()
        check_weights(self._newest, self.num_clients, self._clock.num_rounds)
        self._result.write_text(json.dumps(self._clock.result()))

    def save_model(self, model: FLModel) -> None:
        """FLARE calls it at the end of each round."""
        self._newest = model.params
        self._clock.tick()


class AddConstant(Executor):  # type: ignore[misc,unused-ignore]
    """The client's side; ``site-7`` is the seventh."""

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
        """Answer a task."""
        given = FLModelUtils.from_shareable(shareable)
        number = int(fl_ctx.get_identity_name().rpartition("-")[2])
        add_constant(given.params, constant_of(number - 1))
        update = FLModel(
            params=given.params, params_type=ParamsType.FULL, meta={FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1}
        )
        return FLModelUtils.to_shareable(update)
