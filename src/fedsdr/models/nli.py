"""Natural language inference: whether one text follows from another."""

from collections.abc import Callable, Sequence

import torch

from fedsdr.errors import UserError

RELATIONS = ("entailment", "neutral", "contradiction")

# (premise, hypothesis) pairs -> one of RELATIONS for each
Infer = Callable[[Sequence[tuple[str, str]]], list[str]]


def load_nli(name: str, device: torch.device, batch_size: int = 16) -> Infer:
    """Load a Hugging Face sequence classifier for NLI: a hub id or a folder.

    Its labels must begin with entail, neutral and contradict (any case). The longer text of a pair
    is cut to the model's context, 512 tokens at most. UserError if the model cannot be loaded from
    safetensors or has other labels.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.pipelines import TextClassificationPipeline

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--nli: '{name}' cannot be loaded: {reason}") from None
    labels = [str(label) for label in model.config.id2label.values()]
    relations = {
        label: next((r for r in RELATIONS if label.lower().startswith(r[:6])), "")
        for label in labels
    }
    if sorted(relations.values()) != sorted(RELATIONS):
        raise UserError(
            f"--nli: '{name}' has the labels {', '.join(labels)}; "
            f"name a model with the labels {', '.join(RELATIONS)}"
        )
    context = getattr(model.config, "max_position_embeddings", 512)
    length = min(tokenizer.model_max_length, context, 512)
    classify = TextClassificationPipeline(model=model, tokenizer=tokenizer, device=device)

    def infer(pairs: Sequence[tuple[str, str]]) -> list[str]:
        inputs = [{"text": premise, "text_pair": hypothesis} for premise, hypothesis in pairs]
        options = {"truncation": "longest_first", "max_length": length, "batch_size": batch_size}
        found = classify(inputs, **options) if inputs else []
        return [relations[best["label"]] for best in found]

    return infer
