#!/usr/bin/python3
#
# totals.py SUBSCRIPTION NAME: adds up what comes in on each account, in an ordinary table of the same database.  Fetch, work
# and acknowledgement are one transaction, so each event counts exactly once, whatever is killed when.
#
# Connects as psql does.  The table:
#   CREATE TABLE account_total (account text PRIMARY KEY, amount numeric NOT NULL, events bigint NOT NULL)

import sys

from subscription import Consumer


def add(connection, event):
    connection.execute(
        "INSERT INTO account_total AS t VALUES (%s, %s, 1)"
        " ON CONFLICT (account) DO UPDATE SET amount = t.amount + excluded.amount, events = t.events + 1",
        (event.aggregate_id, event.data["amount"]))


if __name__ == "__main__":
    Consumer("", *sys.argv[1:3]).run_in_transaction(add)
