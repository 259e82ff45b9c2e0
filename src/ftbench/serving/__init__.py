"""The endpoint and its page: runs' models, asked over HTTP or in the terminal."""
