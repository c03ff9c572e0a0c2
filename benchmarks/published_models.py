"""The published models' arithmetic, written plainly: what ours is timed against (published.py, gpu.py), held to their goldens.

Every tensor that the published code makes is made: all 4096-way logits, keys and values of all positions, whole attention maps
with their masks, each pair of slots. Parameters have the published names, so both load the same weights. Shapes as in
physion.models.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, size=1, stride=1):
        super().__init__()
        self.m = nn.Conv2d(inputs, outputs, size, stride, padding=1 if size == 3 else 0, bias=False)
        self.weight, self.bias = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return F.relu(F.group_norm(self.m(x), 1, self.weight, self.bias))


class PublishedDVAE(nn.Module):
    def __init__(self, codes=4096, c=64):
        super().__init__()
        self.encoder = nn.Sequential(Block(3, c, 4, 4), *(Block(c, c) for _ in range(6)), nn.Conv2d(c, codes, 1))
        self.decoder = nn.Sequential(
            Block(codes, c), Block(c, c, 3), Block(c, c), Block(c, c), Block(c, 4 * c), nn.PixelShuffle(2),
            Block(c, c, 3), Block(c, c), Block(c, c), Block(c, 4 * c), nn.PixelShuffle(2), nn.Conv2d(c, 3, 1),
        )  # fmt: skip

    def loss(self, images, tau, exponential=None):
        logits = F.log_softmax(self.encoder(images), 1)
        exponential = torch.empty_like(logits).exponential_() if exponential is None else exponential
        gumbel = -(exponential + torch.finfo(logits.dtype).tiny).log()
        return F.mse_loss(self.decoder(F.softmax((logits + gumbel) / tau, 1)), images)

    def tokenize(self, images):
        return self.encoder(images).argmax(1)


class SlotAttention(nn.Module):
    def __init__(self, d=192, mlp=384):
        super().__init__()
        self.norm_inputs = nn.LayerNorm(d)
        self.project_q = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d, bias=False))
        self.project_k, self.project_v = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.gru = nn.GRUCell(d, d)
        self.mlp = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, mlp), nn.ReLU(), nn.Linear(mlp, d))

    def forward(self, features, slots):
        features = self.norm_inputs(features)
        k, v = self.project_k(features), self.project_v(features)
        for _ in range(2):
            scores = torch.einsum("bpd,bsd->bps", k, self.project_q(slots)) * slots.shape[-1] ** -0.5
            masks = scores.softmax(-1)
            weights = masks + 1e-6
            weights = weights / weights.sum(1, keepdim=True)
            updates = torch.einsum("bps,bpd->bsd", weights, v)
            slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view(slots.shape)
            slots = slots + self.mlp(slots)
        return slots, masks


class Predictor(nn.Module):
    def __init__(self, d=192, hidden=384):
        super().__init__()
        layer = nn.TransformerEncoderLayer(d, 4, 4 * d, 0.1, norm_first=True, batch_first=True)
        transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.base_predictor = nn.ModuleDict({"transformer_encoder": transformer})
        self.rnn, self.out_projector = nn.LSTM(d, hidden), nn.Linear(hidden, d)

    def forward(self, slots, state):
        x = self.base_predictor["transformer_encoder"](slots)
        out, state = self.rnn(x.flatten(0, 1)[None], state)
        return self.out_projector(out[0]).view(slots.shape), state


class Attention(nn.Module):
    def __init__(self, d, heads=4):
        super().__init__()
        self.heads = heads
        self.proj_q, self.proj_k, self.proj_v, self.proj_o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.dropout = nn.Dropout(0.1)

    def forward(self, queries, keys, values, mask=None):
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.proj_q, queries), (self.proj_k, keys), (self.proj_v, values))
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(mask, float("-inf"))
        out = self.dropout(scores.softmax(-1)) @ v
        return self.dropout(self.proj_o(out.transpose(1, 2).flatten(2)))


class DecoderBlock(nn.Module):
    def __init__(self, d, tokens, first):
        super().__init__()
        self.first = first
        self.register_buffer("self_attn_mask", torch.ones(tokens, tokens, dtype=torch.bool).triu(1), persistent=False)
        self.self_attn_layer_norm, self.encoder_decoder_attn_layer_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.self_attn, self.encoder_decoder_attn = Attention(d), Attention(d)
        self.ffn_layer_norm = nn.LayerNorm(d)
        self.ffn = nn.Sequential(nn.Linear(d, 4 * d), nn.ReLU(), nn.Linear(4 * d, d), nn.Dropout(0.1))

    def forward(self, x, slots):
        normed = self.self_attn_layer_norm(x)
        x = (normed if self.first else x) + self.self_attn(normed, normed, normed, self.self_attn_mask)
        x = x + self.encoder_decoder_attn(self.encoder_decoder_attn_layer_norm(x), slots, slots)
        return x + self.ffn(self.ffn_layer_norm(x))


class TokenDecoder(nn.Module):
    def __init__(self, d=192, codes=4096, tokens=1024):
        super().__init__()
        self.codes, self.dropout = codes, nn.Dropout(0.1)
        self.in_proj, self.tok_emb, self.pos_emb = nn.Linear(d, d), nn.Embedding(codes + 1, d), nn.Module()
        self.pos_emb.pe = nn.Parameter(torch.empty(1, tokens, d).normal_())
        self.tf_dec = nn.Module()
        self.tf_dec.blocks = nn.ModuleList(DecoderBlock(d, tokens, first=i == 0) for i in range(4))
        self.tf_dec.layer_norm, self.head = nn.LayerNorm(d), nn.Linear(d, codes, bias=False)

    def forward(self, slots, tokens):
        slots = self.in_proj(slots)
        inputs = torch.cat([torch.full_like(tokens[:, :1], self.codes), tokens[:, :-1]], 1)
        x = self.dropout(self.tok_emb(inputs) + self.pos_emb.pe)
        for block in self.tf_dec.blocks:
            x = block(x, slots)
        return self.head(self.tf_dec.layer_norm(x))


class PublishedSTEVE(nn.Module):
    def __init__(self, side=64, c=64, d=192):
        super().__init__()
        self.init_latents = nn.Parameter(torch.randn(1, 6, d))
        self.slot_attention = SlotAttention(d)
        layers = [nn.Sequential(nn.Conv2d(3 if i == 0 else c, c, 5, 2 if i == 0 else 1, 2), nn.ReLU()) for i in range(4)]
        self.encoder = nn.Sequential(*layers[:3], layers[3][:1])
        axis = torch.linspace(0, 1, side)
        yx = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
        self.encoder_pos_embedding = nn.ModuleDict({"dense": nn.Linear(4, c)})
        self.register_buffer("grid", torch.cat([yx, 1 - yx], -1)[None], persistent=False)
        self.encoder_out_layer = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, d), nn.ReLU(), nn.Linear(d, d))
        self.trans_decoder, self.predictor = TokenDecoder(d, tokens=side**2 // 4), Predictor(d)

    def encode(self, video):
        """Images [B, T, 3, H, W] -> slots [B, T, S, D] and masks [B, T, S, P]."""
        x = self.encoder(video.flatten(0, 1)).permute(0, 2, 3, 1) + self.encoder_pos_embedding["dense"](self.grid)
        features = self.encoder_out_layer(x.flatten(1, 2)).unflatten(0, video.shape[:2])
        all_slots, all_masks, state = [], [], None
        for t in range(video.shape[1]):
            if t == 0:
                guess = self.init_latents.repeat(len(video), 1, 1)
            else:
                guess, state = self.predictor(all_slots[-1], state)
            slots, masks = self.slot_attention(features[:, t], guess)
            all_slots.append(slots)
            all_masks.append(masks.transpose(1, 2))
        return torch.stack(all_slots, 1), torch.stack(all_masks, 1)

    def loss(self, slots, tokens):
        logits = self.trans_decoder(slots.flatten(0, 1), tokens.flatten(0, 1))
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class PublishedSlotFormer(nn.Module):
    def __init__(self, d=192, width=256, frames=15, slots=6):
        super().__init__()
        self.slots = slots
        frequencies = 10000 ** -(torch.arange(0, width, 2) / width)
        angles = torch.arange(frames - 1, -1, -1.0)[:, None] * frequencies
        positions = torch.cat([angles.sin(), angles.cos()], 1).repeat_interleave(slots, 0)[None]
        self.register_buffer("enc_t_pe", positions, persistent=False)
        self.in_proj, self.out_proj = nn.Linear(d, width), nn.Linear(width, d)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, 0.1, norm_first=True, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)

    def predict(self, burn_in, steps):
        window, predicted = burn_in.flatten(1, 2), []
        for _ in range(steps):
            x = self.transformer_encoder(self.in_proj(window) + self.enc_t_pe)
            predicted.append(self.out_proj(x[:, -self.slots :]))
            window = torch.cat([window[:, self.slots :], predicted[-1]], 1)
        return torch.stack(predicted, 1)

    def loss(self, clip, burn_in=15):
        return F.mse_loss(self.predict(clip[:, :burn_in], clip.shape[1] - burn_in), clip[:, burn_in:])

    def rollout_video(self, observed, frames=150):
        """The slots of `frames` frames [B, frames, S, D]: three rollouts, one after the other, that interleave."""
        out = torch.cat([observed, observed.new_empty(len(observed), frames - observed.shape[1], *observed.shape[2:])], 1)
        for offset in range(3):
            out[:, observed.shape[1] + offset :: 3] = self.predict(observed[:, offset::3], (frames - observed.shape[1]) // 3)
        return out


class PublishedReadout(nn.Module):
    def __init__(self, slots=6, d=192):
        super().__init__()
        self.register_buffer("pairs", torch.tensor(list(itertools.combinations(range(slots), 2))).flatten(), persistent=False)
        self.linear1, self.linear2 = nn.Linear(2 * d, d), nn.Linear(d, 1)

    def forward(self, slots):
        pairs = slots[:, :, self.pairs].unflatten(2, (-1, 2)).flatten(3)
        return self.linear2(self.linear1(pairs).amax(2)).squeeze(-1).amax(1)
