"""The product: suspects → evidence → diagnosis → policy → recovery → report."""
