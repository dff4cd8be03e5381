"""A node of a RabbitMQ cluster that the others do not reach any more, though all of them run.

Erlang's nodes let each other in by a shared secret. With two wrong ones for each other they are strangers:
what connects them is closed, and stays so; clients still reach both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker_fl.workers.servers import RabbitMQNode

_CUT = """
[begin
   rpc:call(Other, erlang, set_cookie, [node(), wrong_there]),
   erlang:set_cookie(Other, wrong_here),
   erlang:disconnect_node(Other)
 end || Other <- nodes()].
"""
_KNOW_AGAIN = "[erlang:set_cookie(Other, erlang:get_cookie()) || Other <- [{others}]]."
_LET_IN = "[rpc:call(One, erlang, set_cookie, ['{node}', erlang:get_cookie()]) || One <- [{others}]]."


def cut_off(node: RabbitMQNode) -> None:
    """Have it lose all the others."""
    node.control("eval", _CUT)


def join_again(node: RabbitMQNode, others: Sequence[RabbitMQNode]) -> None:
    """Let them find each other, all at the same moment; they do within a second or two."""
    names = ", ".join(f"'{other.name}'" for other in others)
    node.control("eval", _KNOW_AGAIN.format(others=names))
    others[0].control("eval", _LET_IN.format(node=node.name, others=names))
