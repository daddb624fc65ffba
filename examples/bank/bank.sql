-- bank.sql: a bank account as an aggregate in PL/pgSQL and SQL, its read models, and the registration of both forms of it.
--
-- The same account as bank.c: same commands, events, states, rejections, and rows of balances.  Change both.
-- Amounts are integers, in cents.  Can be run again at any time.

CREATE SCHEMA IF NOT EXISTS bank;

-- Decides: the state and a command give events, a rejection, or nothing.
CREATE OR REPLACE FUNCTION bank.account_handle(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event
LANGUAGE plpgsql STABLE AS $$
DECLARE
  max_amount  CONSTANT bigint := 1000000000000;
  max_balance CONSTANT bigint := 1000000000000000;
  balance bigint := (state->>'balance')::bigint;
  owner   jsonb := command.data->'owner';
  amount  bigint;
BEGIN
  IF command.command_type NOT IN ('Open', 'Deposit', 'Withdraw', 'Close') THEN
    RAISE EXCEPTION 'unknown command type "%"', command.command_type USING ERRCODE = 'VE018';
  END IF;

  IF command.command_type = 'Open' THEN
    IF (state->>'open')::boolean THEN
      RETURN;                           -- done before: nothing to do, no event
    ELSIF state->>'owner' IS NOT NULL THEN
      PERFORM evpg_reject('account_closed', format('account "%s" is closed', command.aggregate_id));
    ELSIF jsonb_typeof(owner) IS DISTINCT FROM 'string' OR owner = '""' THEN
      PERFORM evpg_reject('owner_missing', 'an account needs an owner');
    END IF;
    RETURN NEXT evpg_event('AccountOpened', jsonb_build_object('owner', owner));
    RETURN;
  END IF;

  IF NOT (state->>'open')::boolean THEN
    PERFORM evpg_reject('account_not_open', format('account "%s" is not open', command.aggregate_id));
  END IF;

  IF command.command_type = 'Close' THEN
    IF balance <> 0 THEN
      PERFORM evpg_reject('balance_not_zero', format('balance is %s', balance), jsonb_build_object('balance', balance));
    END IF;
    RETURN NEXT evpg_event('AccountClosed');
    RETURN;
  END IF;

  -- look at the text: a cast would take 1.5 and "12" too
  IF jsonb_typeof(command.data->'amount') = 'number' AND command.data->>'amount' ~ '^[0-9]{1,13}$' THEN
    amount := (command.data->>'amount')::bigint;
  END IF;
  IF amount IS NULL OR amount NOT BETWEEN 1 AND max_amount THEN
    PERFORM evpg_reject('invalid_amount', format('amount must be an integer from 1 to %s', max_amount));
  END IF;

  IF command.command_type = 'Deposit' THEN
    IF amount > max_balance - balance THEN
      PERFORM evpg_reject('balance_limit', format('balance cannot exceed %s', max_balance));
    END IF;
    RETURN NEXT evpg_event('MoneyDeposited', jsonb_build_object('amount', amount));
  ELSE
    IF amount > balance THEN
      PERFORM evpg_reject('insufficient_funds', format('balance %s is less than %s', balance, amount),
                          jsonb_build_object('balance', balance, 'amount', amount));
    END IF;
    RETURN NEXT evpg_event('MoneyWithdrawn', jsonb_build_object('amount', amount));
  END IF;
END $$;

-- Folds: the state and an event give the next state.  STABLE, as jsonb_build_object() is: a function in SQL that claims
-- to be more cannot be inlined, and is several times slower.
CREATE OR REPLACE FUNCTION bank.account_apply(state jsonb, event evpg.event) RETURNS jsonb
LANGUAGE sql STABLE AS $$
  SELECT CASE event.type
    WHEN 'AccountOpened' THEN state || jsonb_build_object('open', true, 'owner', event.data->'owner')
    WHEN 'MoneyDeposited' THEN state ||
      jsonb_build_object('balance', (state->>'balance')::numeric + (event.data->>'amount')::numeric)
    WHEN 'MoneyWithdrawn' THEN state ||
      jsonb_build_object('balance', (state->>'balance')::numeric - (event.data->>'amount')::numeric)
    WHEN 'AccountClosed' THEN state || '{"open": false}'
    ELSE state                          -- without ELSE, an unknown event would give NULL, which is an error
  END
$$;

-- Must hold of every state that a command leaves.
CREATE OR REPLACE FUNCTION bank.account_invariant(state jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
  SELECT (state->>'balance')::numeric >= 0
$$;

-- The one in SQL: account.  Its functions will run with the search_path of now, which must find evpg_event().
SELECT evpg_register_aggregate('account', handler => 'bank.account_handle', reducer => 'bank.account_apply',
  invariant => 'bank.account_invariant', initial_state => '{"open": false, "balance": 0}') AS account_changed;

-- The one in C: account_c.  Needs a superuser, and "make install" in this directory.
SELECT evpg_register_aggregate('account_c', library => 'evpg_bank', symbol => 'bank_account') AS account_c_changed;

-- ------------------------------------------------------------------ read models

-- Balances: a row of jsonb for each account, {"owner": "Alice", "balance": 1250}; none once it is closed.
-- Listeners are sent what changed, not the whole row.
CREATE OR REPLACE FUNCTION bank.balance_after(state jsonb, event evpg.event) RETURNS jsonb
LANGUAGE sql STABLE AS $$
  SELECT jsonb_build_object('balance', (state->>'balance')::numeric
    + CASE event.type WHEN 'MoneyDeposited' THEN 1 ELSE -1 END * (event.data->>'amount')::numeric)
$$;

CREATE OR REPLACE FUNCTION bank.balances_apply(state jsonb, event evpg.event) RETURNS evpg.projected
LANGUAGE sql STABLE AS $$
  SELECT CASE event.type
    WHEN 'AccountOpened' THEN evpg_projected(state || jsonb_build_object('owner', event.data->'owner'),
                                             state || jsonb_build_object('owner', event.data->'owner'))
    WHEN 'AccountClosed' THEN evpg_projected(NULL, '{"closed": true}')  -- no state: the row goes
    ELSE evpg_projected(state || bank.balance_after(state, event), bank.balance_after(state, event))
  END
$$;

-- The statement: an ordinary table with a line for each deposit and withdrawal, written by a table projection.
CREATE TABLE IF NOT EXISTS bank.statement (
  account   text COLLATE "C",
  version   bigint,                     -- of the account after it
  booked_at timestamptz NOT NULL,
  text      text NOT NULL,              -- deposit, withdrawal
  amount    numeric NOT NULL,           -- what it added: less than zero for a withdrawal
  balance   numeric NOT NULL,
  PRIMARY KEY (account, version)
);

-- Lines of one account are written one after the other, so the last one has the balance.
CREATE OR REPLACE FUNCTION bank.statement_write(event evpg.event) RETURNS jsonb
LANGUAGE sql AS $$
  INSERT INTO bank.statement (account, version, booked_at, text, amount, balance)
  SELECT event.aggregate_id, event.version, event.occurred_at, line.text, line.amount,
         line.amount + coalesce((
           SELECT balance FROM bank.statement WHERE account = event.aggregate_id ORDER BY version DESC LIMIT 1), 0)
    FROM (SELECT CASE event.type WHEN 'MoneyDeposited' THEN 'deposit' ELSE 'withdrawal' END AS text,
                 CASE event.type WHEN 'MoneyDeposited' THEN 1 ELSE -1 END * (event.data->>'amount')::numeric AS amount)
         AS line
  RETURNING jsonb_build_object('version', version)
$$;

SELECT evpg_register_projection('balances', reducer => 'bank.balances_apply', aggregate_types => '{account}',
  event_types => '{AccountOpened,MoneyDeposited,MoneyWithdrawn,AccountClosed}', initial_state => '{"balance": 0}',
  broadcast => 'delta') AS balances_changed;

-- Listeners of the statement are told where to look, and read the table.
SELECT evpg_register_projection('statement', handler => 'bank.statement_write', aggregate_types => '{account}',
  event_types => '{MoneyDeposited,MoneyWithdrawn}', broadcast => 'pointer') AS statement_changed;

-- The same balances in C, of the account in C.
SELECT evpg_register_projection('balances_c', library => 'evpg_bank', symbol => 'bank_balances',
  aggregate_types => '{account_c}', broadcast => 'delta') AS balances_c_changed;
