"""Federated fine-tuning of language models on data that disagree (FedSDR, arXiv 2605.18028)."""

__version__ = "0.1.0"
