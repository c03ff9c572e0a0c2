"""The models' FLOPs and parameters, by plain arithmetic: a plan needs no torch. The tests compare it with torch's FLOP counter.

Symbols as in the models: c channels, d slot size, n tokens per frame, p positions of the feature map. A multiply-add: 2 FLOPs.
"""

from __future__ import annotations

from physion.config.schema import (
    MOMENTS,
    DVAEModel,
    ISAModel,
    SlotFormerModel,
    STEVEModel,
    TrainISA,
    TrainSlotFormer,
    TrainSTEVE,
)

# The readout `touch`: values that it reads from a slot's content, its network's width, and how many frames apart it looks.
TOUCH_CONTENT, TOUCH_WIDTH, TOUCH_STRIDE = 8, 64, 3


def encode_flops(model: DVAEModel, size: int) -> float:
    """dVAE encoder, one image."""
    c, n = model.channels, (size // 4) ** 2
    return 2 * n * (48 * c + 6 * c**2 + c * model.codes)


def decode_flops(model: DVAEModel, size: int) -> float:
    """dVAE decoder from relaxed codes, one image."""
    c, n = model.channels, (size // 4) ** 2
    return 2 * n * (model.codes * c + 15 * c**2 + 4 * 15 * c**2 + 16 * 3 * c)


def reconstruct_flops(model: DVAEModel, size: int) -> float:
    """dVAE encoder and decoder, one image: a sample of its training, forward."""
    return encode_flops(model, size) + decode_flops(model, size)


def slots_flops(model: STEVEModel, size: int) -> float:
    """STEVE from an image to its slots, one frame."""
    c, d, s, p = model.encoder_channels, model.slot_size, model.slots, (size // model.encoder_stride) ** 2
    h = model.predictor_lstm
    features = p * (75 * c + 75 * c**2 + 4 * c + c * d + d**2 + 2 * d**2)
    attention = model.slot_iterations * (2 * p * s * d + s * (7 * d**2 + 2 * d * model.slot_mlp))
    transformer = model.predictor_layers * (s * _encoder_layer(d, model.predictor_ffn) + 2 * s**2 * d)
    return 2 * (features + attention + transformer + s * (4 * h * (d + h) + h * d))


def tokens_flops(model: STEVEModel, size: int, codes: int) -> float:
    """STEVE from slots to the logits of all tokens, one frame, teacher forced."""
    d, s, n = model.slot_size, model.slots, (size // 4) ** 2
    layer = n * 14 * d**2 + 2 * s * d**2 + 2 * n**2 * d + 2 * n * s * d
    return 2 * (s * d**2 + model.decoder_layers * layer + n * d * codes)


def steve_clip_flops(section: TrainSTEVE, size: int, codes: int) -> float:
    """STEVE, one clip: a sample of its training, forward."""
    return section.clip_frames * (slots_flops(section.model, size) + tokens_flops(section.model, size, codes))


def isa_flops(model: ISAModel, size: int) -> float:
    """ISA from an image to its slots, one frame; d is the content of a slot."""
    c, d, s, p = model.encoder_channels, model.slot_size - MOMENTS, model.slots, (size // model.encoder_stride) ** 2
    features = p * (75 * c + 75 * c**2 + c * d + d**2)
    attention = model.slot_iterations * (2 * p * s * d + 11 * p * s + s * (9 * d**2 + 18 * d + 2 * d * model.slot_mlp))
    predictor = model.predictor_layers * (s * _encoder_layer(model.slot_size, model.predictor_ffn) + 2 * s**2 * model.slot_size)
    return 2 * (features + attention + predictor + s * model.slot_size**2)


def drawing_flops(model: ISAModel, patches: float) -> float:
    """ISA's decoder, so many patches of one frame."""
    w, d = model.decoder_width, model.slot_size - MOMENTS
    return 2 * model.slots * ((d + 2) * w + d + patches * (6 * w + w**2 + 4 * w * model.patch**2))


def isa_clip_flops(section: TrainISA, size: int) -> float:
    """ISA, one clip: a sample of its training, forward."""
    drawn = drawing_flops(section.model, section.drawn * (size // section.model.patch) ** 2)
    return section.clip_frames * (isa_flops(section.model, size) + drawn)


def isa_parameters(model: ISAModel) -> float:
    """Weights of ISA, without biases and gains."""
    c, d, w = model.encoder_channels, model.slot_size - MOMENTS, model.decoder_width
    slots = model.slots * model.slot_size + 9 * d**2 + 18 * d + 2 * d * model.slot_mlp
    predictor = model.predictor_layers * _encoder_layer(model.slot_size, model.predictor_ffn) + model.slot_size**2
    decoder = (d + 2) * w + 6 * w + w**2 + 4 * w * model.patch**2 + d
    return 75 * c + 75 * c**2 + c * d + d**2 + slots + predictor + decoder


def predict_flops(model: SlotFormerModel, slots: int, slot_size: int) -> float:
    """SlotFormer, one predicted frame."""
    w, length = model.d_model, model.burn_in * slots
    layer = length * _encoder_layer(w, model.ffn) + 2 * length**2 * w
    return 2 * (length * slot_size * w + model.layers * layer + slots * w * slot_size)


def slotformer_clip_flops(section: TrainSlotFormer, slots: int, slot_size: int) -> float:
    """SlotFormer, one clip: a sample of its training, forward."""
    return section.rollout_frames * predict_flops(section.model, slots, slot_size)


def readout_flops(slots: int, slot_size: int) -> float:
    """The published readout, one frame."""
    return 4 * slots * slot_size**2


def readout_parameters(slot_size: int) -> float:
    """Weights of the published readout, without biases."""
    return 2 * slot_size**2


def touch_inputs(places: int) -> int:
    """What the network of the readout `touch` sees: two slots, the vector, gap and distance between them, velocities."""
    return 2 * (TOUCH_CONTENT + 2 * places) + 5 * places + 1


def touch_flops(slot_size: int, places: int) -> float:
    """The readout `touch`, one frame."""
    return 2 * (2 * slot_size * TOUCH_CONTENT + touch_inputs(places) * TOUCH_WIDTH + TOUCH_WIDTH**2) / TOUCH_STRIDE


def touch_parameters(slot_size: int, places: int) -> float:
    """Weights of the readout `touch`, without biases."""
    return slot_size * TOUCH_CONTENT + (touch_inputs(places) + 4 * TOUCH_WIDTH + 1) * TOUCH_WIDTH


def slotformer_parameters(model: SlotFormerModel) -> float:
    """Weights of the rollouter's layers."""
    return model.layers * _encoder_layer(model.d_model, model.ffn)


def dvae_parameters(model: DVAEModel) -> float:
    """Weights of the dVAE, without biases and gains."""
    c = model.channels
    return 2 * model.codes * c + 36 * c**2 + 51 * c


def steve_parameters(model: STEVEModel, size: int, codes: int) -> float:
    """Weights of STEVE, without biases and gains."""
    c, d, h = model.encoder_channels, model.slot_size, model.predictor_lstm
    encoder = 75 * c**2 + 79 * c + c * d + d**2
    slots = 9 * d**2 + 2 * d * model.slot_mlp + model.slots * d
    predictor = model.predictor_layers * _encoder_layer(d, model.predictor_ffn) + 4 * h * (d + h) + h * d
    decoder = d**2 + (2 * codes + (size // 4) ** 2) * d + model.decoder_layers * 16 * d**2
    return encoder + slots + predictor + decoder


def _encoder_layer(width: int, ffn: int) -> float:
    """Multiply-adds per token, and weights, of a transformer encoder layer without its attention products."""
    return 4 * width**2 + 2 * width * ffn
