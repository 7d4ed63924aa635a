"""`gapssg quickstart`."""
import typer
def quickstart(context: typer.Context) -> None:
    """Run everything on the embedded digits."""
