"""The training core: encoding, packed micro-batches, log-probabilities, the loop. It is handed a loss."""
