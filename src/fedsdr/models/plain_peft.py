"""An adapter on the plain base, as PEFT and transformers know both."""

from pathlib import Path
from typing import Any

from fedsdr.config import ModelConfig
from fedsdr.models.base_model import choose_device, plain_model, source_of


def load_plain_peft(config: ModelConfig, adapter: Path) -> Any:
    """Return the base of `config`, without this program's fast path, with a PEFT adapter."""
    from peft import PeftModel

    model, _ = plain_model(source_of(config)[0], config, choose_device(config.device))
    return PeftModel.from_pretrained(model, str(adapter)).eval()
