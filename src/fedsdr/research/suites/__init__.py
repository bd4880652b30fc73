"""Public benchmark suites: questions from a local folder, prompts, the harness, code execution."""
