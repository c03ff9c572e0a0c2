"""The models of the study: dVAE, STEVE, SlotFormer, readout; their weights files and the published checkpoints."""
