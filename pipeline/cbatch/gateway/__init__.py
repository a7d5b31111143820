"""The gateway: OpenAI clients in front, one account's chat completions behind. Loads nothing by itself."""
