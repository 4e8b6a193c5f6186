"""Serving with vLLM: the launcher (`launcher.Server`), the client (`client.Client`), vLLM's entry point."""
