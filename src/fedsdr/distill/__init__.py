"""Rewriting: a client's answers in the seed model's own words, once before training.

The seed model sees each instruction with its gold answer and answers again (self-distillation:
Yang et al., ACL 2024; FedSDR, Eq. 2).
"""
