-- transfer.sql: transfers between accounts, in PL/pgSQL and SQL, and the registration of both forms of them.  After
-- bank.sql.
--
-- The same as transfer.c, which describes the process: same commands, events, states, rejections and reactions.  Change
-- both.  Amounts are integers, in cents.  Can be run again at any time.

-- ------------------------------------------------------------------ the aggregate: what was asked for, and what came of it

CREATE OR REPLACE FUNCTION bank.transfer_handle(state jsonb, command evpg.command) RETURNS evpg.new_event
LANGUAGE plpgsql STABLE AS $$
DECLARE
  max_amount CONSTANT bigint := 1000000000000;
  data jsonb := command.data;
BEGIN
  IF command.command_type NOT IN ('Request', 'Complete', 'Fail') THEN
    RAISE EXCEPTION 'unknown command type "%"', command.command_type USING ERRCODE = 'VE018';
  END IF;

  IF command.command_type = 'Request' THEN
    IF state ? 'status' THEN
      PERFORM evpg_reject('transfer_exists', format('transfer "%s" was requested before', command.aggregate_id));
    ELSIF jsonb_typeof(data->'from') IS DISTINCT FROM 'string' OR jsonb_typeof(data->'to') IS DISTINCT FROM 'string'
       OR '' IN (data->>'from', data->>'to') THEN
      PERFORM evpg_reject('account_missing', 'a transfer needs two accounts');
    ELSIF data->'from' = data->'to' THEN
      PERFORM evpg_reject('same_account', 'a transfer needs two different accounts');
    ELSIF jsonb_typeof(data->'amount') IS DISTINCT FROM 'number' OR data->>'amount' !~ '^[0-9]{1,13}$'
       OR (data->>'amount')::numeric NOT BETWEEN 1 AND max_amount THEN
      PERFORM evpg_reject('invalid_amount', format('amount must be an integer from 1 to %s', max_amount));
    END IF;
    RETURN evpg_event('TransferRequested',
      jsonb_build_object('from', data->'from', 'to', data->'to', 'amount', data->'amount'));
  END IF;

  IF NOT state ? 'status' THEN
    PERFORM evpg_reject('transfer_unknown', format('transfer "%s" was never requested', command.aggregate_id));
  ELSIF state->>'status' <> 'requested' THEN
    RETURN NULL;                        -- it has come to an end, and keeps it: no event
  END IF;
  RETURN CASE command.command_type
    WHEN 'Complete' THEN evpg_event('TransferCompleted')
    ELSE evpg_event('TransferFailed', jsonb_build_object('reason', coalesce(data->>'reason', '')))
  END;
END $$;

CREATE OR REPLACE FUNCTION bank.transfer_apply(state jsonb, event evpg.event) RETURNS jsonb
LANGUAGE sql STABLE AS $$
  SELECT CASE event.type
    WHEN 'TransferRequested' THEN state || event.data || '{"status": "requested"}'
    WHEN 'TransferCompleted' THEN state || '{"status": "completed"}'
    WHEN 'TransferFailed' THEN state || event.data || '{"status": "failed"}'
    ELSE state
  END
$$;

SELECT evpg_register_aggregate('transfer', handler => 'bank.transfer_handle', reducer => 'bank.transfer_apply')
  AS transfer_changed;
SELECT evpg_register_aggregate('transfer_c', library => 'evpg_bank', symbol => 'bank_transfer_order') AS transfer_c_changed;

-- ------------------------------------------------------------------ the saga: moves the money

-- The transfer that an event belongs to.  The events of accounts say it in their metadata, which they have from the command.
CREATE OR REPLACE FUNCTION bank.transfer_of(event evpg.event) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE event.aggregate_type WHEN 'transfer' THEN event.aggregate_id ELSE nullif(event.metadata->>'transfer', '') END
$$;

-- Reacts to an event: the next state, and what is to be done.  The state describes what has been done: a send is
-- executed when the state is stored.
CREATE OR REPLACE FUNCTION bank.transfer_react(state jsonb, event evpg.event) RETURNS evpg.reaction
LANGUAGE plpgsql STABLE AS $$
DECLARE
  id text := bank.transfer_of(event);
  of_transfer jsonb := jsonb_build_object('transfer', id);
  money jsonb;
BEGIN
  CASE event.type
    WHEN 'TransferRequested' THEN
      money := jsonb_build_object('amount', event.data->'amount');
      RETURN evpg_reaction(state || money || jsonb_build_object('state', 'withdrawn', 'to', event.data->'to'),
        evpg_action_send('account', event.data->>'from', 'Withdraw', money, label => 'withdraw', metadata => of_transfer,
          undo => evpg_action_send('account', event.data->>'from', 'Deposit', money, metadata => of_transfer)),
        evpg_action_schedule('deadline', interval '10 minutes'));
    WHEN 'MoneyWithdrawn' THEN
      money := jsonb_build_object('amount', state->'amount');
      RETURN evpg_reaction(state || '{"state": "deposited"}',
        evpg_action_send('account', state->>'to', 'Deposit', money, label => 'deposit', metadata => of_transfer));
    WHEN 'MoneyDeposited' THEN
      RETURN evpg_reaction(state || '{"state": "done"}',
        evpg_action_send('transfer', id, 'Complete', label => 'finish'),
        evpg_action_complete());
  END CASE;
END $$;

-- Pays back what was withdrawn, if it was, and completes the instance.
CREATE OR REPLACE FUNCTION bank.transfer_give_up(state jsonb, id text, reason text) RETURNS evpg.reaction
LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(state || '{"state": "failed"}',
    evpg_action_send('transfer', id, 'Fail', jsonb_build_object('reason', coalesce(reason, '')), label => 'finish'),
    evpg_action_compensate(reason))
$$;

-- NULL is "not handled": not even the refund was taken, so the dead letter needs an operator.
CREATE OR REPLACE FUNCTION bank.transfer_refused(state jsonb, rejection evpg.rejection) RETURNS evpg.reaction
LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN rejection.label IN ('withdraw', 'deposit')
    THEN bank.transfer_give_up(state, rejection.key, rejection.code) END
$$;

-- Once the state is "deposited", the payee has the money.
CREATE OR REPLACE FUNCTION bank.transfer_too_late(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction
LANGUAGE sql STABLE AS $$
  SELECT CASE state->>'state' WHEN 'withdrawn' THEN bank.transfer_give_up(state, timer.key, 'deadline')
         ELSE evpg_reaction(state) END
$$;

-- The transitions are a safeguard: any other change of state is an error.
SELECT evpg_register_saga('transfer', handler => 'bank.transfer_react', rejection_handler => 'bank.transfer_refused',
  timer_handler => 'bank.transfer_too_late', key_function => 'bank.transfer_of', aggregate_types => '{transfer,account}',
  event_types => '{TransferRequested,MoneyWithdrawn,MoneyDeposited}', start_event_types => '{TransferRequested}',
  transitions => '{"": ["withdrawn", "failed"], "withdrawn": ["deposited", "failed"], "deposited": ["done"]}')
  AS transfer_saga_changed;

SELECT evpg_register_saga('transfer_c', library => 'evpg_bank', symbol => 'bank_transfer',
  transitions => '{"": ["withdrawn", "failed"], "withdrawn": ["deposited", "failed"], "deposited": ["done"]}')
  AS transfer_c_saga_changed;
