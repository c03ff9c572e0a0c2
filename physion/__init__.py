"""The whole Physion visual-question-answering study as resumable batch stages."""

__version__ = "0.1.0"
