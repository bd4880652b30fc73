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

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--nli: '{name}' cannot be loaded: {reason}") from None
    labels = {int(i): str(label) for i, label in model.config.id2label.items()}
    relations = {
        i: next((r for r in RELATIONS if label.lower().startswith(r[:6])), "")
        for i, label in labels.items()
    }
    if sorted(relations.values()) != sorted(RELATIONS):
        raise UserError(
            f"--nli: '{name}' has the labels {', '.join(labels.values())}; "
            f"name a model with the labels {', '.join(RELATIONS)}"
        )
    model.to(device).eval()
    context = getattr(model.config, "max_position_embeddings", 512)
    length = min(tokenizer.model_max_length, context, 512)

    def infer(pairs: Sequence[tuple[str, str]]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(pairs), batch_size):
            premises, hypotheses = zip(*pairs[start : start + batch_size], strict=True)
            inputs = tokenizer(
                list(premises),
                list(hypotheses),
                truncation="longest_first",
                max_length=length,
                padding=True,
                return_tensors="pt",
            ).to(device)
            with torch.inference_mode():
                best = model(**inputs).logits.argmax(dim=-1).tolist()
            found += [relations[i] for i in best]
        return found

    return infer
