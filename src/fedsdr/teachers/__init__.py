"""Generation engines for rewriting, besides plain transformers; each returns a `Generate`.

All engines get the prompt that the caller renders (an endpoint applies its own template), return
text without special tokens, count the end-of-turn token in `new_tokens`, and use a seed per
request. transformers, vLLM and OpenVINO (2026.4 on) apply temperature, top-k, then top-p. Random
generators differ, so the same seed gives different text in different engines.
"""
