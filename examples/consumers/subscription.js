// A consumer of a subscription of evpg, over node-postgres.
//
//   new Consumer(config, subscription, name).runInTransaction(handle)  await handle(client, event): exactly once
//   new Consumer(config, subscription, name).runOutside(handle)        await handle(event): at least once
//
// Both run until SIGTERM or SIGINT, connect again when the connection is lost, and wait for notifications, without which
// they look for events every second.  The name tells the consumers of a group apart: no two processes have the same.
'use strict';

const { Client } = require('pg');

// what passes by itself: a lost connection, a server that stops or recovers, too many connections, conflicts, timeouts
const TRANSIENT = /^(08|40|53|57|55P03|25P03)/;

// errors of the server have a severity; others are of the socket, or of node-postgres when the connection has ended
const isTransient = (error) => (error.severity ? TRANSIENT.test(error.code) : !(error instanceof TypeError));

class LeaseLost extends Error {}

class Consumer {
  constructor(config, subscription, name, { batch = 100, interval = 1000, leaseTime = 30000 } = {}) {
    // leaseTime: that of the subscription
    Object.assign(this, { config, subscription, name, batch, interval, leaseTime });
    this.stopping = false;
    this.woken = false;
    this.wake = () => { this.woken = true; };
  }

  runInTransaction(handle) {
    return this.run((client) => this.takeInTransaction(client, handle));
  }

  runOutside(handle) {
    return this.run((client) => this.takeOutside(client, handle));
  }

  // ---------------------------------------------------------------- what is done with a batch

  // Fetches, works and acknowledges in one transaction: each event has its effect once.
  async takeInTransaction(client, handle) {
    await client.query('BEGIN');
    try {
      const events = await this.fetch(client);
      let failed = false;
      for (const event of events) {
        await client.query('SAVEPOINT event');
        try {
          await handle(client, event);
        } catch (error) {
          if (this.lost) throw error;
          // what was done for the events before it stays; this one comes again, or is parked
          await client.query('ROLLBACK TO SAVEPOINT event');
          await this.giveBack(client, event, error);
          failed = true;
          break;
        }
        await client.query('RELEASE SAVEPOINT event');
      }
      if (events.length > 0 && !failed) await this.acknowledge(client, events[events.length - 1]);
      await client.query('COMMIT');
      return events.length;
    } catch (error) {
      await client.query('ROLLBACK').catch(() => {}); // the connection may be lost
      throw error;
    }
  }

  // Works outside of the database, then acknowledges: after a crash in between, events come again.
  async takeOutside(client, handle) {
    const events = await this.fetch(client);
    let renewed = Date.now();
    for (const event of events) {
      try {
        await handle(event);
      } catch (error) {
        await this.giveBack(client, event, error);
        return events.length;
      }
      if (Date.now() - renewed > this.leaseTime / 3) {
        await this.acknowledge(client, event); // which renews the lease
        renewed = Date.now();
      }
    }
    if (events.length > 0) await this.acknowledge(client, events[events.length - 1]);
    return events.length;
  }

  // ---------------------------------------------------------------- the functions of evpg

  // lease and position are strings, as all bigint are with node-postgres: they are passed back as they came
  async fetch(client) {
    return (await client.query('SELECT * FROM evpg_fetch($1, $2, $3)', [this.subscription, this.name, this.batch])).rows;
  }

  async acknowledge(client, event) {
    this.expectLease(await client.query('SELECT evpg_ack($1, $2, $3) AS kept', [this.subscription, event.lease, event.position]));
  }

  async giveBack(client, event, error) {
    console.error(`${this.name}: event ${event.position}, attempt ${event.attempt}: ${error.message}`);
    this.expectLease(await client.query('SELECT evpg_nack($1, $2, $3, reason => $4) AS kept',
      [this.subscription, event.lease, event.position, error.message]));
  }

  expectLease(result) {
    if (!result.rows[0].kept) throw new LeaseLost(this.name);
  }

  // The partitions are free at once, not only when the lease has run out.
  async leave(client) {
    await client.query('SELECT evpg_release_lease($1, lease) FROM (SELECT DISTINCT lease FROM evpg.stat_subscription '
      + 'WHERE name = $1 AND consumer = $2) AS l', [this.subscription, this.name]);
  }

  // ---------------------------------------------------------------- the loop

  async run(take) {
    for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => this.stop());
    let pause = 100;
    while (!this.stopping) {
      const client = new Client(this.config);
      this.lost = false;
      client.on('error', () => { this.lost = true; this.wake(); });
      client.on('end', () => { this.lost = true; this.wake(); });
      client.on('notification', () => this.wake()); // what it contains does not matter
      try {
        await client.connect();
        await client.query('SELECT evpg_listen_subscription($1)', [this.subscription]);
        while (!this.stopping) {
          if (this.lost) throw new Error('the connection was lost');
          this.woken = false;
          let count;
          try {
            count = await take(client);
          } catch (error) {
            if (error instanceof LeaseLost) continue;
            throw error;
          }
          pause = 100;
          if (count === 0) await this.wait(this.interval);
        }
        await this.leave(client);
      } catch (error) {
        if (!isTransient(error)) throw error;
        console.error(`${this.name}: connects again: ${error.message}`);
        this.woken = false;
        await this.wait(pause * (0.5 + Math.random() / 2));
        pause = Math.min(2 * pause, 10000);
      } finally {
        await client.end().catch(() => {});
      }
    }
  }

  // Waits until something happens that wake() was called for, since woken was set to false.
  wait(milliseconds) {
    return new Promise((resolve) => {
      if (this.woken || this.stopping) { resolve(); return; }
      const timer = setTimeout(() => this.wake(), milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        this.woken = true;
        this.wake = () => { this.woken = true; };
        resolve();
      };
    });
  }

  stop() {
    this.stopping = true;
    this.wake();
  }
}

module.exports = { Consumer };
