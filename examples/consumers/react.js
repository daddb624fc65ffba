// node react.js SUBSCRIPTION NAME: answers each event by a command.  The command may go to another database than the one that
// the event comes from, so the two are not one transaction: after a crash in between the event comes again, and so does the
// command, under the same command_id, which makes the second one do nothing.
//
// Connects as psql does; with TARGET, a connection string, the commands go there.
'use strict';

const { Pool } = require('pg');
const { Consumer } = require('./subscription');

const pool = new Pool({ connectionString: process.env.TARGET, max: 1 });
pool.on('error', (error) => console.error(error.message)); // it connects again for the next command

async function react(event) {
  // what one event causes has the event's correlation, and the event as its cause
  const { rows: [{ status, message }] } = await pool.query(
    "SELECT status, message FROM evpg_try_execute('notice', $1, 'Note', $2, command_id => $3, correlation_id => $4, "
      + 'causation_id => $5)',
    [event.aggregate_id, JSON.stringify({ text: `${event.type} of ${event.data.amount}` }), `note ${event.event_id}`,
      event.correlation_id, event.event_id],
  );
  // "duplicate" is as good as "ok"; a refusal is the answer, too, and does not get better by asking again
  if (!['ok', 'duplicate', 'noop', 'rejected'].includes(status)) {
    throw new Error(`the command ended with ${status}: ${message}`);
  }
}

if (require.main === module) new Consumer({}, ...process.argv.slice(2, 4)).runOutside(react).then(() => pool.end());

module.exports = { react, pool };
