"""What a run measured, read from its parts and never from the engine."""
