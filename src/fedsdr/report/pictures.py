"""Pictures as PNG files, by matplotlib, without its global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.files import write_file


def draw_landscape(
    points: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], path: Path
) -> None:
    """Write the answers of all clients to `path`, a panel each for raw and rewritten.

    `points`: kind -> client -> (x, y) of each answer, in one plane for both kinds. A colour is a
    client; the other kind stays behind in grey, so that one sees what moved.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    clients = list(next(iter(points.values())))
    name = "tab10" if len(clients) <= 10 else "tab20" if len(clients) <= 20 else "turbo"
    size = colormaps[name].N if name != "turbo" else len(clients)
    colours = colormaps[name].resampled(size)(range(len(clients)))
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, len(points), sharex=True, sharey=True)
    for panel, (kind, of_kind) in zip(panels, points.items(), strict=True):
        behind = [xy for other, rest in points.items() if other != kind for xy in _all(rest)]
        panel.scatter(*_columns(behind), s=10, color="0.88", linewidths=0)
        for client, colour in zip(clients, colours, strict=True):
            panel.scatter(*_columns(of_kind[client]), s=14, color=colour, linewidths=0, alpha=0.8)
        panel.set(title=f"{kind} answers ({len(_all(of_kind))})", xticks=[], yticks=[])
    handles = [
        panels[0].scatter([], [], s=30, color=colour, label=client)
        for client, colour in zip(clients, colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(clients)))
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _all(of_kind: Mapping[str, Sequence[Sequence[float]]]) -> list[Sequence[float]]:
    return [point for points in of_kind.values() for point in points]


def _columns(points: Sequence[Sequence[float]]) -> tuple[list[Any], list[Any]]:
    return [x for x, _ in points], [y for _, y in points]
