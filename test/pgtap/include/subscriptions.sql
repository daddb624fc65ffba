-- subscriptions.sql: what the pgTAP files of subscriptions share.

SET default_transaction_isolation = 'read committed';
SELECT evpg_register_aggregate('thing'), evpg_register_aggregate('other') \g /dev/null

-- Appends an event to each of the streams s1, s2, ... of a type.
CREATE FUNCTION append(streams int, type text DEFAULT 'Made', aggregate_type text DEFAULT 'thing') RETURNS void
  LANGUAGE sql AS $$
  SELECT evpg_append_event(aggregate_type, 's' || n, type, jsonb_build_object('n', n)) FROM generate_series(1, streams) AS n
$$;
-- What a consumer gets, as stream:version.
CREATE FUNCTION fetched(subscription text, consumer text, max_events int DEFAULT 100, lease bigint DEFAULT NULL)
  RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(aggregate_id || ':' || version || CASE WHEN attempt > 1 THEN '*' || attempt ELSE '' END, ' '
                    ORDER BY "position")
    FROM evpg_fetch(subscription, consumer, max_events, lease => fetched.lease)
$$;
-- The lease of a consumer, and the last position that it was handed out.
CREATE FUNCTION lease_of(subscription text, name text) RETURNS bigint LANGUAGE sql AS $$
  SELECT lease FROM evpg.subscription_lease l WHERE l.subscription = lease_of.subscription AND l.consumer = name
$$;
CREATE FUNCTION handed(subscription text, name text) RETURNS bigint LANGUAGE sql AS $$
  SELECT handed FROM evpg.subscription_lease l WHERE l.subscription = handed.subscription AND l.consumer = name
$$;
-- Acknowledges all that a consumer was handed out.
CREATE FUNCTION done(subscription text, name text) RETURNS boolean LANGUAGE sql AS $$
  SELECT evpg_ack(subscription, lease_of(subscription, name), handed(subscription, name))
$$;
