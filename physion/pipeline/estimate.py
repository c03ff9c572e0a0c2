"""What each stage instance will write and compute, before anything is spent.

Plain arithmetic, so that a plan needs no torch; the tests hold it to torch's FLOP counter and to what a run really writes.
Symbols as in the models: c channels, d slot size, n tokens a frame, p positions of the feature map. A multiply-add is 2 FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from physion.config.schema import Config, DVAEModel, SlotFormerModel, STEVEModel, TrainingStage
from physion.pipeline.graph import Node

SUSTAINED = 100e12  # FLOP/s assumed for accelerator time: about a tenth of an H100's bf16 peak
JPEG_BYTES_A_PIXEL = 0.33  # about 5.4 kB a frame of 128 x 128 at quality 95
MP4_BYTES_A_PIXEL = 1.1  # of a whole 150-frame clip: 18 kB at 128 x 128
OFFICIAL = {"training": 15_998, "readout": 8_005, "test": 1_174}
OFFICIAL_BYTES = 1.04e9


@dataclass(frozen=True)
class Cost:
    """Estimated output in bytes and work in floating-point operations."""

    bytes: float = 0.0
    flops: float = 0.0


def estimate(config: Config, graph: dict[str, Node]) -> dict[str, Cost]:
    """The cost of every stage instance by name."""
    simulated = config.dataset == "simulate"
    videos = config.simulate.videos.model_dump() if simulated else OFFICIAL
    size, length = config.frames.image_size, config.frames.frames
    dvae, steve, slotformer = config.train_dvae.model, config.train_steve.model, config.train_slotformer.model
    slots, width, tokens = steve.slots, steve.slot_size, (size // 4) ** 2

    def trained(stage: TrainingStage, parameters: float, forward: float) -> Cost:
        return Cost(4 * parameters, 3 * forward * stage.optim.batch_size * stage.optim.steps)  # backward is twice forward

    def cost(node: Node) -> Cost:
        if node.weights is not None:
            return Cost(sum(record.size for record in node.weights.manifest.files))
        frames = videos[str(node.params.get("subset", "training"))] * length
        match node.stage:
            case "simulate":
                return Cost(sum(videos.values()) * config.simulate.image_size**2 * MP4_BYTES_A_PIXEL)
            case "fetch":
                return Cost(OFFICIAL_BYTES)
            case "frames":
                return Cost(frames * size**2 * JPEG_BYTES_A_PIXEL)
            case "train-dvae":
                flops = encode_flops(dvae, size) + decode_flops(dvae, size)
                return trained(config.train_dvae, dvae_parameters(dvae), flops)
            case "tokenize":
                return Cost(2 * frames * tokens, frames * encode_flops(dvae, size))
            case "train-steve":
                per_frame = slots_flops(steve, size) + tokens_flops(steve, size, dvae.codes)
                return trained(
                    config.train_steve, steve_parameters(steve, size, dvae.codes), config.train_steve.clip_frames * per_frame
                )
            case "extract-slots":
                return Cost(4 * frames * slots * width, frames * slots_flops(steve, size))
            case "train-slotformer":
                step = predict_flops(slotformer, slots, width)
                parameters = slotformer.layers * _encoder_layer(slotformer.d_model, slotformer.ffn)
                return trained(config.train_slotformer, parameters, config.train_slotformer.rollout_frames * step)
            case "rollout":
                predicted = frames * max(0, length - config.rollout.observed) / length
                return Cost(4 * frames * slots * width, predicted * predict_flops(slotformer, slots, width))
            case "train-readout":
                seen = getattr(config.train_readout.model, str(node.params["features"]))
                return trained(config.train_readout, 2 * width**2, seen * slots * 4 * width**2)
        return Cost()

    return {name: cost(node) for name, node in graph.items()}


def encode_flops(model: DVAEModel, size: int) -> float:
    """dVAE encoder, one image."""
    c, n = model.channels, (size // 4) ** 2
    return 2 * n * (48 * c + 6 * c**2 + c * model.codes)


def decode_flops(model: DVAEModel, size: int) -> float:
    """dVAE decoder from relaxed codes, one image."""
    c, n = model.channels, (size // 4) ** 2
    return 2 * n * (model.codes * c + 15 * c**2 + 4 * 15 * c**2 + 16 * 3 * c)


def slots_flops(model: STEVEModel, size: int) -> float:
    """STEVE from an image to its slots, one frame."""
    c, d, s, p = model.encoder_channels, model.slot_size, model.slots, (size // 2) ** 2
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


def predict_flops(model: SlotFormerModel, slots: int, slot_size: int) -> float:
    """SlotFormer, one predicted frame."""
    w, length = model.d_model, model.burn_in * slots
    layer = length * _encoder_layer(w, model.ffn) + 2 * length**2 * w
    return 2 * (length * slot_size * w + model.layers * layer + slots * w * slot_size)


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
    """Multiply-adds a token, and weights, of a transformer encoder layer without its attention products."""
    return 4 * width**2 + 2 * width * ffn
