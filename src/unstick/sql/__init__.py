"""Any SQL jobs table: mapping, statements, source and ledger on SQLite, PostgreSQL and MariaDB/MySQL."""
