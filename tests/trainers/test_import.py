# SPDX-License-Identifier: Apache-2.0
"""Weights of one network into a pair, through nnU-Net's own -pretrained_weights; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_data import TINY_PLANS
from tiny_training import files_up_to, make_trainer

from nnunet_dhc.cli.main import main
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.models.import_weights import ImportRequest, import_weights


@pytest.fixture
def stock(tiny_dataset, tmp_path):
    """A checkpoint of stock nnU-Net on the tiny plans, as it writes it, and its path."""
    plans = {**tiny_dataset.plans_content(), "continue_training": False}
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, tiny_dataset.dataset_json, torch.device("cpu"))
    trainer.initialize()
    path = tmp_path / "stock.pth"
    trainer.save_checkpoint(str(path))
    return trainer.network.state_dict(), path


def request(source: Path, network: str, **changes) -> ImportRequest:
    arguments = {"dataset": 999, "configuration": "3d_fullres", "plans_identifier": TINY_PLANS, **changes}
    return ImportRequest(source, network, **arguments)


def trained_from(dataset, path: Path, name: str = "nnUNetTrainerDHC"):
    trainer = make_trainer(dataset, name, num_epochs=1)
    maybe_load_checkpoint(trainer, False, False, str(path))
    return trainer


def body(state: dict) -> dict:
    return {key: value for key, value in state.items() if ".seg_layers." not in key}


def agree(first: dict, second: dict) -> bool:
    first, second = body(first), body(second)
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("network", "filled"), [("A", (True, False)), ("B", (False, True)), ("both", (True, True))])
def test_pretrained_weights_of_nnunet_go_where_they_should(tiny_dataset, stock, tmp_path, network, filled, capsys):
    state, path = stock
    options = ["-d", "999", "-c", "3d_fullres", "-p", TINY_PLANS, "-net", network]
    assert main(["import", "-i", str(path), "-o", str(tmp_path / "pair.pth"), *options]) == 0
    assert ("WARNING: A and B start alike" in capsys.readouterr().out) == (network == "both")
    trainer = trained_from(tiny_dataset, tmp_path / "pair.pth")
    a, b = trainer.pair.sub_networks
    assert (agree(a.state_dict(), state), agree(b.state_dict(), state)) == filled
    heads = [network.decoder.seg_layers[-1].weight for network in (a, b)]
    assert not torch.equal(*heads)
    trainer.run_training()


def test_our_own_checkpoint_is_a_start_as_it_is(tiny_dataset, tmp_path):
    first = make_trainer(tiny_dataset, num_epochs=1)
    first.run_training()
    path = Path(first.output_folder) / "checkpoint_final.pth"
    second = trained_from(tiny_dataset, path, "nnUNetTrainerCPS")
    for before, now in zip(first.pair.sub_networks, second.pair.sub_networks, strict=True):
        assert agree(before.state_dict(), now.state_dict())
    assert second.pair.votes is None  # what the sub-networks know of other labels says nothing here
    second.run_training()
    with pytest.raises(UserError, match="is a pair already: give it to -pretrained_weights"):
        import_weights(request(path, "A"), tmp_path / "pair.pth")


@pytest.mark.parametrize("form", ["module", "compiled", "bare", "state_dict"])
def test_other_forms_of_a_single_network(tiny_dataset, stock, tmp_path, form):
    """Files of a pretraining hold the same names under prefixes of DDP or torch.compile, or without nnU-Net's frame."""
    state, _ = stock
    content = {
        "module": {"network_weights": {f"module.{key}": value for key, value in state.items()}},
        "compiled": {"network_weights": {f"_orig_mod.{key}": value for key, value in state.items()}},
        "bare": state,
        "state_dict": {"state_dict": state},
    }[form]
    torch.save(content, tmp_path / "other.pth")
    import_weights(request(tmp_path / "other.pth", "B"), tmp_path / "pair.pth")
    trainer = trained_from(tiny_dataset, tmp_path / "pair.pth")
    assert agree(trainer.pair.sub_network_b.state_dict(), state)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "can't be read"), ("{}", 'is no plans file, it has no "configurations"'), ("[]", "holds no JSON object")],
)
def test_damaged_plans_are_named(tiny_dataset, stock, tmp_path, content, message):
    (tiny_dataset.preprocessed / f"{tiny_dataset.tiny_plans}.json").write_text(content)
    with pytest.raises(UserError, match=f"{tiny_dataset.tiny_plans}.json {message}"):
        import_weights(request(stock[1], "A"), tmp_path / "pair.pth")


def test_heads_of_another_dataset_are_left_out(tiny_dataset, stock, tmp_path):
    state, path = stock
    other = {key: value[:1] if ".seg_layers." in key else value for key, value in state.items()}
    torch.save({"network_weights": other}, path)
    import_weights(request(path, "both"), tmp_path / "pair.pth")
    assert agree(trained_from(tiny_dataset, tmp_path / "pair.pth").pair.sub_network_a.state_dict(), state)


def test_the_other_sub_network_starts_as_a_new_training_does(tiny_dataset, stock, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_dhc_seed", "5")
    import_weights(request(stock[1], "A", trainer="nnUNetTrainerDHCReleased"), tmp_path / "pair.pth")
    new = make_trainer(tiny_dataset, "nnUNetTrainerDHCReleased")
    new.initialize()
    trainer = trained_from(tiny_dataset, tmp_path / "pair.pth")
    assert agree(trainer.pair.sub_network_b.state_dict(), new.pair.sub_network_b.state_dict())


def test_other_architecture_is_refused_by_the_first_key(tiny_dataset, stock, tmp_path):
    state, path = stock
    plans = tiny_dataset.plans_content()
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
    (tiny_dataset.preprocessed / "nnUNetPlansWide.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"sub-network A of the plans: encoder.stages.2\S+ has shape \(8, 8, 3, 3, 3\) "
                                        r"in the file, the network's has shape \(16, 8, 3, 3, 3\)"):
        import_weights(request(path, "A", plans_identifier="nnUNetPlansWide"), tmp_path / "pair.pth")
    del state["decoder.stages.0.convs.0.conv.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"decoder.stages.0.convs.0.conv.weight is not in the file"):
        import_weights(request(path, "B"), tmp_path / "pair.pth")
    assert not (tmp_path / "pair.pth").exists() and not list(tmp_path.glob(".writing-*"))


def test_full_disk_leaves_nothing(tiny_dataset, stock, tmp_path):
    _, path = stock
    with files_up_to(20_000), pytest.raises(UserError, match=r"pair\.pth can't be written .*free space"):
        import_weights(request(path, "A"), tmp_path / "pair.pth")
    assert not (tmp_path / "pair.pth").exists() and not list(tmp_path.glob(".writing-*"))


def test_bad_input(tiny_dataset, stock, tmp_path):
    _, path = stock
    (tmp_path / "there.pth").write_text("mine")
    (tmp_path / "damaged.pth").write_bytes(path.read_bytes()[:1000])
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    cases = [
        (request(path, "A"), "there.pth", "exists: choose another name"),
        (request(tmp_path / "gone.pth", "A"), "o.pth", "does not exist"),
        (request(tmp_path / "damaged.pth", "A"), "o.pth", "damaged or not a checkpoint"),
        (request(tmp_path / "list.pth", "A"), "o.pth", "holds no weights"),
        (request(tmp_path / "empty.pth", "A"), "o.pth", "holds no weights"),
        (request(path, "A", plans_identifier="Other"), "o.pth", "Other.json does not exist"),
        (request(path, "A", configuration="3d"), "o.pth", "no configuration 3d: choose from"),
        (request(path, "A", trainer="nnUNetTrainer"), "o.pth", "trains no pair of networks"),
        (request(path, "A", trainer="nnUNetTrainerDCH"), "o.pth", "nnUNetTrainerDCH is not found"),
        (request(path, "A", dataset=5), "o.pth", "no dataset 5"),
    ]
    for asked, output, message in cases:
        with pytest.raises(UserError, match=message):
            import_weights(asked, tmp_path / output)
    assert (tmp_path / "there.pth").read_text() == "mine" and not (tmp_path / "o.pth").exists()
