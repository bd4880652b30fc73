"""fedsdr export: a PEFT adapter or merged weights of the global model or of a client."""

from pathlib import Path

import click

from fedsdr.cli.options import run_folder


@click.command()
@run_folder
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--client", default="", help="A client's model (R+S) instead of the global one.")
@click.option("--merge", is_flag=True, help="Whole weights instead of an adapter.")
@click.option("--gguf", is_flag=True, help="Also write adapter.gguf, which llama.cpp loads.")
@click.option("--push-to-hub", default="", metavar="NAME", help="Upload the folder to this model.")
def export(run: Path, out: Path, client: str, merge: bool, gguf: bool, push_to_hub: str) -> None:
    """Write a model that plain PEFT or transformers loads, with tokenizer and model card."""
    from fedsdr.runs import hub_upload
    from fedsdr.runs.export import export_model

    if push_to_hub:
        hub_upload.check_hub_name(push_to_hub)
    print(export_model(run, out, client_id=client, merge=merge, gguf=gguf))
    if push_to_hub:
        print(hub_upload.push_to_hub(out, push_to_hub))
