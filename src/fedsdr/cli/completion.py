"""fedsdr completion: the script that completes commands, options and paths in a shell."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: fedsdr completion bash > ~/.local/share/bash-completion/completions/fedsdr
    zsh:  fedsdr completion zsh > _fedsdr     in a folder of $fpath
    fish: fedsdr completion fish > ~/.config/fish/completions/fedsdr.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script
    print(script(context.find_root().command, {}, "fedsdr", "_FEDSDR_COMPLETE").source())
