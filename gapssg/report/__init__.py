"""Accounts of finished runs for people: one page for a browser, and a model card."""
