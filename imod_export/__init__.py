"""Export: a LoRA adapter merged into its base by streaming, and the proof that nothing else changed."""
