"""Curves as SVG text, drawn by matplotlib without its global state."""

import io
from collections.abc import Mapping, Sequence

Curve = Sequence[tuple[int, float]]  # (round, value)
MOST_COLOURS = 20  # of more curves, colours cannot be told apart


def curves_svg(panels: Mapping[str, Mapping[str, Curve]], unit: str, bold: str = "") -> str:
    """Return one SVG with a panel per entry; the curve named `bold` is drawn on top, in black.

    A name has the same colour in all panels. More than MOST_COLOURS curves are grey and, except for
    `bold`, not named. The same curves give the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    palette = matplotlib.colormaps["tab20" if len(names) > 10 else "tab10"]
    many = len(names) > MOST_COLOURS
    colours = {name: "0.75" if many else palette(i % palette.N) for i, name in enumerate(names)}
    with matplotlib.rc_context({"svg.hashsalt": "fedsdr", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            for name, curve in curves.items():
                axis.plot(
                    [round for round, _ in curve],
                    [value for _, value in curve],
                    color="black" if name == bold else colours[name],
                    linewidth=2.2 if name == bold else 1.2,
                    marker="o",
                    markersize=3,
                    zorder=3 if name == bold else 2,
                    label=name if name == bold or not many else "_unnamed",
                )
            axis.set(title=title, xlabel="round", ylabel=unit)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
        handles, labels = axes[0].get_legend_handles_labels()
        if labels:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        out = io.StringIO()
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    text = out.getvalue()
    return text[text.index("<svg") :]
