"""Alembic's side of Unstick's own tables; run by `unstick db`, never by the host's alembic."""
