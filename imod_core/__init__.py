"""What every stage of IMoD shares: the command, errors, artifact folders, media, samples and the AVT model."""

__version__ = "0.1.0"
