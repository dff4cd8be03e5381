"""What all settings of a job have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Setting(BaseModel):
    """Base of all settings: frozen, and nothing unknown is let in."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, lt=1)]
"""Of what was before that is kept: 0 forgets it at once."""
Above0 = Annotated[float, Field(gt=0)]
