"""What announces chunks: the manifests of a model and of an update."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Self

from broker_fl.errors import FrameRefused
from broker_fl.model import ModelError, ModelSpec
from broker_fl.wire.encodings import encoding as encoding_named
from broker_fl.wire.fields import ChunkBytes, Count, Digest, EncodingName, SpecRows
from broker_fl.wire.frames import brief
from broker_fl.wire.messages.parts import Part

UpdateForm = Literal["values", "changes", "sum"]
"""``sum`` is a group's: the weighted sum of its learners' values, un-normalised (``Task.learners``)."""
Control = Literal["none", "change", "lost"]


class ModelManifest(Part):
    """Announces the chunks of a model: what they are when put together."""

    version: Count
    spec: SpecRows
    """The tensors in order: name, element type, shape."""
    spec_digest: Digest = ""
    """Identifies ``spec``; the learner sends it back with its update."""
    digest: Digest = ""
    """Identifies the version: its spec and its values before encoding."""
    encoding: EncodingName = "raw"
    num_bytes: Count
    """Bytes on the wire: of the encoded buffer, not of the model in memory."""
    chunk_bytes: ChunkBytes

    @classmethod
    def of(cls, spec: ModelSpec, *, version: int, digest: str, encoding: str, chunk_bytes: int) -> Self:
        """Announce a model that looks like ``spec``."""
        return cls(
            version=version,
            spec=spec.to_wire(),
            spec_digest=spec.digest,
            digest=digest,
            encoding=encoding,
            num_bytes=encoding_named(encoding).num_bytes(spec),
            chunk_bytes=chunk_bytes,
        )

    def model_spec(self, max_bytes: int, kept: Collection[str] = ()) -> ModelSpec:
        """The spec, once all else that the manifest says agrees with it; nothing is allocated before that.

        Args:
            max_bytes: the largest model that is taken here, in memory; encoded it is never larger.
            kept: tensors that the encoding leaves as they are.

        Raises:
            FrameRefused: no usable spec, an encoding that is unknown or not for models, a size that does not
            fit, or one above the limit.
        """
        if not encoding_named(self.encoding).of_versions:
            raise FrameRefused(f"a model is not sent as {self.encoding!r}, which is for changes only")
        try:
            spec = ModelSpec.from_wire(self.spec)
        except ModelError as error:
            raise FrameRefused(f"the manifest describes no model: {error}") from error
        if spec.num_bytes > max_bytes:
            raise FrameRefused(
                f"the model has {brief(spec.num_bytes)} bytes; at most {max_bytes} are taken here"
            )
        if self.spec_digest and self.spec_digest != spec.digest:
            raise FrameRefused(f"the spec's digest is {spec.digest}, the manifest says {self.spec_digest}")
        _check_num_bytes(self.num_bytes, self.encoding, spec, kept)
        return spec


class UpdateManifest(Part):
    """Announces the chunks of an update."""

    spec_digest: Digest = ""
    """As in the task's manifest."""
    form: UpdateForm = "values"
    control: Control = "none"
    """What the tensors behind the model's are, where the task has ``control``: the change of the learner's
    control variate; or zeros, because it has lost its own.
    """
    encoding: EncodingName = "raw"
    num_bytes: Count
    """Bytes on the wire, of the encoded buffer."""
    chunk_bytes: ChunkBytes

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        *,
        encoding: str,
        chunk_bytes: int,
        form: UpdateForm = "values",
        control: Control = "none",
    ) -> Self:
        """Announce an update that looks like ``spec``."""
        return cls(
            spec_digest=spec.digest,
            form=form,
            control=control,
            encoding=encoding,
            num_bytes=encoding_named(encoding).num_bytes(spec),
            chunk_bytes=chunk_bytes,
        )

    def check(self, spec: ModelSpec) -> None:
        """Hold the manifest against the spec of the version that the learner was given.

        Raises:
            FrameRefused: it is of another model, or its size does not fit.
        """
        if self.spec_digest and self.spec_digest != spec.digest:
            raise FrameRefused(f"the update is of a model with digest {self.spec_digest}, not {spec.digest}")
        _check_num_bytes(self.num_bytes, self.encoding, spec)


def _check_num_bytes(num_bytes: int, encoding: str, spec: ModelSpec, kept: Collection[str] = ()) -> None:
    expected = encoding_named(encoding, kept).num_bytes(spec)
    if num_bytes != expected:
        raise FrameRefused(
            f"the manifest announces {num_bytes} bytes; as {encoding!r} the model has {expected}"
        )
