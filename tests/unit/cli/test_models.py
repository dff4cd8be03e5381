"""``broker-fl models``, as far as it needs no broker; the rest is in tests/integration/cli."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from broker_fl.cli import commands


def test_a_place_where_no_file_can_be_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    """No broker is there: it is not asked."""
    (tmp_path / "file").write_text("no folder", "utf-8")
    out = tmp_path / "file" / "x.safetensors"
    nowhere = "amqp://127.0.0.1:1/"
    for path in (out, tmp_path / "file" / "deeper" / "x.safetensors"):
        args = ["models", "export", "latest", "--out", str(path), "--broker", nowhere]
        result = CliRunner().invoke(commands, args)
        assert result.exit_code == 2, result.output
        assert f"the folder {path.parent} cannot be made" in result.stderr
        assert "fault of broker-fl" not in result.stderr
