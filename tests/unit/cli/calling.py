"""Commands called in this process, and an app for them."""

from __future__ import annotations

from click.testing import CliRunner, Result

from broker_fl.cli import commands

APP = """
import numpy as np
from broker_fl import Update

class Adder:
    def __init__(self, context):
        self.step = context.index + 1

    def train(self, model, task):
        return Update(model={"w": model["w"] + self.step}, num_examples=1)

    def evaluate(self, model, task):
        return {"level": float(model["w"][0])}

def make_learner(context):
    return Adder(context)

def initial_model():
    return {"w": np.zeros(3, "f4")}
"""


def call(*arguments: str, **environment: str) -> Result:
    result = CliRunner().invoke(commands, arguments, env=environment)
    assert "Traceback" not in result.output
    return result
