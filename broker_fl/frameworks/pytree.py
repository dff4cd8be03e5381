"""The leaves of a pytree as named arrays, and back; what ``jax.py`` is made of.

A leaf has the keys, positions and field names on the way to it for a name: ``{"layers": [{"w": …}]}`` has
``layers/0/w``. An array that is at several places of the tree (tied weights: one object, not equal values) is
carried once, under the first of its names, and stays one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from broker_fl.frameworks.fit import fitting
from broker_fl.model import Array, Arrays, ModelError, ModelSpec

Tree = Any
"""A pytree: arrays in dicts, lists, tuples, dataclasses that are registered with JAX."""
Named = dict[str, jax.Array]


def to_arrays(tree: Tree, out: Arrays | None = None) -> dict[str, Array]:
    """A copy of every leaf of ``tree`` by its name.

    With ``out``, values are written into those arrays, and they are what is returned.

    Raises:
        ModelError: a leaf has no place in a model: it is no array, a random key, or of an unknown type.
    """
    leaves = Layout.of(tree)[1]
    if out is None:
        return {name: np.array(leaf) for name, leaf in leaves.items()}
    for name, leaf in leaves.items():
        np.copyto(out[name], np.asarray(leaf), casting="no")
    return dict(out)


def from_arrays(arrays: Arrays, like: Tree) -> Tree:
    """A tree that looks like ``like``, with copies of ``arrays`` for leaves, each on the device of its place.

    Raises:
        ModelError: names, shapes or element types are not those of ``like``.
    """
    layout, leaves = Layout.of(like)
    given = fitting(arrays, ModelSpec.of({name: described(leaf) for name, leaf in leaves.items()}), "pytree")
    return layout.tree({name: placed(given[name], leaf.sharding) for name, leaf in leaves.items()})


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the named arrays belong in the tree; equal for equal trees, as JAX wants its static values."""

    structure: Any
    names: tuple[str, ...]
    """Of each leaf; tied leaves have one name."""

    @classmethod
    def of(cls, tree: Tree, prefix: str = "") -> tuple[Layout, Named]:
        """The layout of ``tree`` and its arrays."""
        paths, structure = jax.tree_util.tree_flatten_with_path(tree)
        found: Named = {}
        names: dict[int, str] = {}
        for path, leaf in paths:
            name = "/".join([*([prefix] if prefix else []), *map(_part, path)]) or "model"
            if id(leaf) in names:
                continue
            if name in found:
                raise ModelError(f"two leaves of the pytree have the name {name!r}: rename a key with a '/'")
            names[id(leaf)] = name
            found[name] = _checked(name, leaf)
        return cls(structure, tuple(names[id(leaf)] for _, leaf in paths)), found

    def tree(self, values: Mapping[str, Any]) -> Tree:
        """The tree with these leaves."""
        return jax.tree.unflatten(self.structure, [values[name] for name in self.names])

    def values(self, tree: Tree) -> dict[str, Any]:
        """The other way round; of tied leaves the last counts."""
        return dict(zip(self.names, jax.tree.leaves(tree), strict=True))


def _part(key: Any) -> str:
    """One step of a path: of a dict, a sequence, a class with fields, or any other."""
    return str(next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)))


def _checked(name: str, leaf: Any) -> jax.Array:
    if not isinstance(leaf, jax.Array | np.ndarray):
        raise ModelError(
            f"leaf {name!r} of the pytree is a {type(leaf).__name__}, not an array: make it one with "
            f"jnp.asarray, or leave it out of the model"
        )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ModelError(f"leaf {name!r} of the pytree is a random key; it cannot travel: leave it out")
    array = jnp.asarray(leaf)
    if array.dtype != leaf.dtype:
        raise ModelError(
            f"leaf {name!r} of the pytree is {leaf.dtype}, which JAX would make {array.dtype}: convert it, "
            f"or set jax_enable_x64"
        )
    ModelSpec.of({name: described(array)})
    return array


def described(leaf: Any) -> Array:
    """An array of the leaf's shape and type that takes no memory, wherever the leaf is."""
    return np.broadcast_to(np.empty((), leaf.dtype), leaf.shape)


def placed(array: Array, where: Any) -> jax.Array:
    """A copy of ``array`` on that device."""
    # JAX may go on using numpy's memory, which is written to when the task is done: it gets a copy.
    copy: jax.Array = jax.device_put(np.array(array), where)
    return copy
