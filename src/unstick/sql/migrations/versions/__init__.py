"""One file a revision; two branches: `ledger` for every database, `jobs` for Unstick's own jobs table."""
