// node mail.js SUBSCRIPTION NAME DIRECTORY: writes a mail for each event, as a file.  A file is outside of the database, as a
// mail server or a message broker is: an event may come again after a crash, and finds the same name for its mail, by event_id.
//
// Connects as psql does.
'use strict';

const fs = require('fs/promises');
const path = require('path');
const { Consumer } = require('./subscription');

async function send(event) {
  const name = path.join(process.argv[4], event.event_id);
  const mail = await fs.open(`${name}.new`, 'w');
  await mail.write(`To: ${event.aggregate_id}\n\n${event.type}: ${JSON.stringify(event.data)}\n`);
  await mail.sync();
  await mail.close();
  await fs.rename(`${name}.new`, name);
}

if (require.main === module) new Consumer({}, ...process.argv.slice(2, 4)).runOutside(send);
