"""Weights files rebuild their model or say in one line why not; published state dicts come in and go out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from physion.config.schema import DVAEModel, SlotFormerModel, STEVEModel
from physion.errors import DataError
from physion.models.published import copies_for, from_published, to_published
from physion.models.weights import build_model, load_model, save_weights

CONFIGS = {
    "dvae": {"model": DVAEModel(codes=20, channels=8).model_dump(mode="json")},
    "steve": {
        "model": STEVEModel(slot_size=16, decoder_heads=2, decoder_layers=1, predictor_heads=2).model_dump(mode="json"),
        "image_size": 32,
        "codes": 20,
    },
    "slotformer": {
        "model": SlotFormerModel(d_model=16, heads=2, layers=1).model_dump(mode="json"),
        "slots": 3,
        "slot_size": 16,
    },
    "readout": {"slots": 3, "slot_size": 16},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_weights_file_alone_rebuilds_the_model(name, tmp_path):
    model = build_model(name, CONFIGS[name])
    save_weights(tmp_path / "w.safetensors", model, name, CONFIGS[name])
    loaded = load_model(tmp_path / "w.safetensors", name)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True))


def test_equal_weights_give_equal_files(tmp_path):
    model = build_model("readout", CONFIGS["readout"])
    for number in range(8):
        save_weights(tmp_path / str(number), model, "readout", CONFIGS["readout"])
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1


def saved(path, change=lambda state: state, **changed):
    save_weights(path, build_model("readout", CONFIGS["readout"]), "readout", CONFIGS["readout"])
    state = change(load_file(path))
    facts = {"model": "readout", "config": CONFIGS["readout"], **changed}
    save_file(state, path, {"physion": json.dumps(facts)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if k != "linear2.bias"}, "missing: linear2.bias"),
        (lambda state: state | {"dvae.x": torch.ones(1)}, "extra: dvae.x"),
        (lambda state: state | {"linear2.bias": torch.ones(3)}, r"mismatched: linear2.bias \[3\] instead of \[1\]"),
        (lambda state: {}, "missing: linear1.weight, linear1.bias, linear2.weight and 1 more"),
    ],
)
def test_weights_that_do_not_fit(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_model(saved(tmp_path / "w.safetensors", change))


def test_files_that_are_no_weights(tmp_path):
    path = saved(tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="holds a readout model, not steve"):
        load_model(path, "steve")
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:40], b"", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="truncated or corrupt"):
            load_model(path)
    with pytest.raises(DataError, match="no weights file"):
        load_model(tmp_path / "none.safetensors")
    for metadata in (None, {"physion": "{"}, {"physion": "{}"}):
        save_file({"x": torch.ones(1)}, path, metadata)
        with pytest.raises(DataError, match="names no model"):
            load_model(path)
    for changed in ({"model": "vit"}, {"config": "{"}, {"config": {}}, {"config": {"slots": 1, "slot_size": 2}}):
        with pytest.raises(DataError, match=r"cannot build: .*"):
            load_model(saved(path, **changed))


@pytest.mark.parametrize("name", CONFIGS)
def test_published_state_dicts_come_in_and_go_out(goldens, name):
    model, keys = goldens.model(name), goldens.keys[name]
    published = to_published(name, model, copies_for(name, {other: goldens.model(other) for other in ("dvae", "steve")}))
    shapes = {key: [*value.shape, str(value.dtype).removeprefix("torch.")] for key, value in published.items()}
    assert shapes == keys
    back = from_published(name, published)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
    if name == "readout":
        assert torch.equal(published["comb_idx"], goldens.arrays("readout_A")["comb_idx"])
    if name == "slotformer":
        torch.testing.assert_close(published["rollouter.enc_t_pe"], goldens.arrays("slotformer_A")["enc_t_pe"])
    if name == "steve":
        assert published["encoder_pos_embedding.grid"][0, 0, -1].tolist() == [0, 1, 1, 0]  # y, x, 1 - y, 1 - x
        mask = published["trans_decoder.tf_dec.blocks.3.self_attn_mask"]
        assert not mask[5, 5]
        assert mask[5, 6]
