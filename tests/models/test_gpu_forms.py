"""What the models do on a GPU, where there is none: shapes, precisions and graph breaks, on fake CUDA tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from physion.config.schema import DVAEModel, SlotFormerModel, STEVEModel
from physion.models.dvae import DVAE
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE

PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


MODELS = {
    "dvae": lambda: DVAE(DVAEModel()),
    "steve": lambda: STEVE(STEVEModel(), 128, 4096),
    "slotformer": lambda: SlotFormer(SlotFormerModel(), 6, 192),
}


@pytest.fixture
def on_gpu(monkeypatch):
    """Makes a model of published size on a GPU that is not there; with what the test makes after it."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    models = {name: make() for name, make in MODELS.items()}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        yield lambda name: models[name].to_empty(device="cuda")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_of_steve(on_gpu, precision):
    """Published sizes and batch: the logits of all tokens, 4.8 GB, are never there, and features are made half as wide once."""
    steve, seen = on_gpu("steve"), []
    steve.trans_decoder.cross_entropy.chunk.register_forward_pre_hook(
        lambda _, inputs: seen.append((inputs[0].shape, inputs[0].dtype))
    )
    steve.slot_attention.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0].shape, inputs[0].dtype)))
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        slots = steve.encode(torch.rand(48, 6, 3, 128, 128)).slots
        loss = steve.loss(slots, torch.zeros(48, 6, 1024, dtype=torch.int64))
    assert (slots.shape, slots.dtype) == ((48, 6, 6, 192), torch.float32)
    assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, "cuda")
    assert set(seen) == {((48, 4096, 192), precision), ((8192, 4096), precision)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_gpu_compiles_has_no_graph_breaks(on_gpu, precision):
    torch._dynamo.reset()
    dvae, steve, former = map(on_gpu, MODELS)
    parts = [
        (dvae.loss_at_once, (torch.rand(2, 3, 128, 128), torch.ones(()))),
        (steve._project, (torch.rand(2, 64, 64, 64),)),
        (steve.trans_decoder, (torch.rand(2, 6, 192), torch.zeros(2, 1024, dtype=torch.int64))),
        (steve.slot_attention, (torch.rand(2, 4096, 192), torch.rand(2, 6, 192))),
        (steve.predictor, (steve._first(2),)),
        (steve.encoder, (torch.rand(2, 3, 128, 128),)),
        (former.transformer_encoder, (torch.rand(2, 90, 256),)),
    ]
    for part, inputs in parts:
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            assert torch._dynamo.explain(part)(*inputs).graph_break_count == 0, part


def test_the_loss_of_the_dvae_that_is_compiled_is_the_loss():
    dvae, images, tau = DVAE(DVAEModel(codes=20, channels=8)), torch.rand(2, 3, 32, 32) * 2 - 1, torch.tensor(0.7)
    torch.manual_seed(3)
    exponential = torch.empty(2, 8, 8, 20).exponential_().movedim(-1, 1)
    torch.manual_seed(3)
    losses = dvae.loss_at_once(images, tau), dvae.loss(images, 0.7, exponential)
    torch.testing.assert_close(*losses)
    ours, wanted = (torch.autograd.grad(loss, list(dvae.parameters())) for loss in losses)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
