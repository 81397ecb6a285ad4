"""An export as a whole: what is refused writes nothing, and what was proven on noise says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.card import DataSource
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.report.export_table import export_parts
from emqdeploy.workflows.export import export

from ..conftest import Deployed


def test_a_selector_of_one_child_is_refused_before_anything_is_written(small: Deployed, tmp_path: Path) -> None:
    """The plain file of the child, too, would be there without having been asked for alone."""
    save_checkpoint(tmp_path / "model.emq", small.checkpoint)
    with pytest.raises(UsageError, match=r"a selector chooses among children, and only 4 is given; name several"):
        export(ExportSettings(tmp_path, bits="4", selector="if"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.emq"]


def test_baselines_of_the_users_own_network_need_its_name(small: Deployed, tmp_path: Path) -> None:
    """A file may not have code imported; said before anything is written, with an option of this command."""
    card = structs.replace(small.checkpoint.card, model="somebodys_network:net")
    save_checkpoint(tmp_path / "model.emq", replace(small.checkpoint, card=card))
    (tmp_path / "latent.safetensors").touch()
    settings = ExportSettings(tmp_path, bits="8", with_baselines=True)
    with pytest.raises(EmqError, match=r"name it yourself: --model somebodys_network:net$"):
        export(settings)
    with pytest.raises(UsageError, match=r"this network is somebodys_network:net, not other:net; name the same model"):
        export(replace(settings, model="other:net"))
    assert not (tmp_path / "bundle").exists()


def test_a_proof_on_noise_is_said_aloud(small: Deployed, tmp_path: Path) -> None:
    """Behind the table, where it is read, with the reason why no test images were at hand."""
    card = structs.replace(small.checkpoint.card, data=DataSource("imagefolder:/no/such/folder"))
    save_checkpoint(tmp_path / "model.emq", replace(small.checkpoint, card=card))
    result = export(ExportSettings(tmp_path, bits="8"))
    note = export_parts(result)[-1]
    assert isinstance(note, str)
    assert note.startswith("proven on 256 noise images, because the data set is not at hand: /no/such/folder is not a")
    assert "--data-dir" in note
    save_checkpoint(tmp_path / "model.emq", small.checkpoint)
    assert "note" not in export(ExportSettings(tmp_path, bits="8", out=tmp_path / "again"))
