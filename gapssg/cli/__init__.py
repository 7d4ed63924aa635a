"""The command line: options to settings, call, render. No tensor is touched here."""
