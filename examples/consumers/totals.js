// node totals.js SUBSCRIPTION NAME: adds up what comes in on each account, in an ordinary table of the same database.  Fetch,
// work and acknowledgement are one transaction, so each event counts exactly once, whatever is killed when.
//
// Connects as psql does.  The table:
//   CREATE TABLE account_total (account text PRIMARY KEY, amount numeric NOT NULL, events bigint NOT NULL)
'use strict';

const { Consumer } = require('./subscription');

async function add(client, event) {
  await client.query('INSERT INTO account_total AS t VALUES ($1, $2, 1) '
    + 'ON CONFLICT (account) DO UPDATE SET amount = t.amount + excluded.amount, events = t.events + 1',
  [event.aggregate_id, event.data.amount]);
}

if (require.main === module) new Consumer({}, ...process.argv.slice(2, 4)).runInTransaction(add);
